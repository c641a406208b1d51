"""The loss of an autoencoder, its statistics over held-out data, and diagnostics of its training."""
