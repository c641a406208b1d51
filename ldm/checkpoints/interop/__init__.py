"""Other tools' checkpoints: CompVis's and Stable Diffusion's single files, diffusers' folders. Each key table has its own module."""
