"""One file a model family: a table for its config and a table for its weights."""
