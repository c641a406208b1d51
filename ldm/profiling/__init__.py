"""What a computation costs before it runs."""
