"""What is measured of a model: one file a kind of measurement; arguments and tables are `ldm.app`'s."""
