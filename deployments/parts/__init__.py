"""The deployments of the graph, and what a replica is made of."""
