"""A/B experiments: buckets of users, exposures, attribution of clicks, analysis."""
