"""The blocks that networks are built of."""
