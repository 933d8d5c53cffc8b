"""Room 7, serve: the composed graph on Ray Serve."""
