"""Ray actors: the long-lived, stateful ones."""
