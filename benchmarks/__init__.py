"""Benchmarks: `make bench`, or `reki bench NAME`; each writes benchmarks/out/<name>.json."""
