"""The mathematics of diffusion: processes, predictions, weightings, grids, the denoiser and its loss."""
