"""Room 2, cluster: representations, clusterers, total assignment, quality."""
