"""LoRA files of other tools."""
