"""Other tools' checkpoints, to ours and back: `compvis`, `diffusers` and `lora`; here, what they share: key tables and safe reading."""
