"""Train steps: a batch and a model to a loss, a loss to an update."""
