"""Noise processes, one file each."""
