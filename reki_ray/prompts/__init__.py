"""Factorization prompts: scenarios, rendering, parsing of answers."""
