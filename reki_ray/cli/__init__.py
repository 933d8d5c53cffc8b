"""The command line `reki`."""
