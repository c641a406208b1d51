"""Guidance: a denoiser in, a denoiser out."""
