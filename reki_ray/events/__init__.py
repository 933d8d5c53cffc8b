"""The log of what users did, and what is made of it: recent histories, batches, new versions."""
