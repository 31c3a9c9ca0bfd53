"""The commands that do not train: generate, evaluate, export."""
