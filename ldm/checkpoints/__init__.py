"""Models on disk: a folder that rebuilds them, verified on the way in."""
