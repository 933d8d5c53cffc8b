"""Room 5, train: batches, loop, checkpoints."""
