"""The way of a request through the graph."""
