"""Retrieval of candidates: what is learned at publication, its files, and the search online."""
