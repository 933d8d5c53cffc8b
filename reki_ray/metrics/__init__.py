"""Metrics of clicks and ranked lists, and their confidence intervals."""
