"""Configuration: YAML in, frozen dataclasses out."""
