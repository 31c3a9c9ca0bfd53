"""The whole road on a toy language, in minutes, on a laptop."""
