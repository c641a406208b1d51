"""Floor 0: what every room may use. Imports torch only."""
