"""LoRAs in the formats of other tools."""
