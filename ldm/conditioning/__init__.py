"""What a model is told: one file a conditioner, each giving tokens, a vector or channels, and each knowing what "nothing" is."""
