"""Floor 0: code that every package may use. It imports torch only."""
