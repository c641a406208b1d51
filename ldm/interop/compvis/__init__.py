"""CompVis's and Stable Diffusion's single files, and the YAML that describes them."""
