"""Search for the best settings of training, on the validation split."""
