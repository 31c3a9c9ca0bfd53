"""Where scores come from: Python functions and reward models."""
