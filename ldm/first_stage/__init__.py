"""First stages: pictures to latents and back, and the contract between them and stage two."""
