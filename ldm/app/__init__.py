"""What the scripts do: arguments and configs in, parts built once, results on disk."""
