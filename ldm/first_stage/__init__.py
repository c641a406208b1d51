"""First stages: images to latents and back, and the normalization of the latents that stage two sees."""
