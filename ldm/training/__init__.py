"""One engine that runs a step, and a task for each kind of model, which is its loss."""
