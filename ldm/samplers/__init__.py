"""Solvers from noise to data, one file each."""
