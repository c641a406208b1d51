"""CompVis's and Stable Diffusion's single files, with the YAML that describes them."""
