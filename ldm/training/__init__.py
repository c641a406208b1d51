"""One engine that runs a step, two tasks that say what its loss is."""
