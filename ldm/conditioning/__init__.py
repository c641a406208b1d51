"""What a model is conditioned on: one file a conditioner. Each gives tokens, a vector or channels, and has a null input."""
