"""What happens after publication: events, exposures, experiments, refreshes."""
