"""Models on disk: folders that hold all that rebuilds a model, verified when they are read."""
