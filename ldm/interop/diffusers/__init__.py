"""diffusers' folders: pipelines, single parts, and parts with a program that samples from them."""
