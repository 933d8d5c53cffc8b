"""`reki plan`: what extraction would ask, take and cost, before any call."""
