"""Metrics, arms, confidence intervals, the report."""
