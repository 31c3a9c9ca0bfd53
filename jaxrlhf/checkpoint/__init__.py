"""What a run leaves on disk: checkpoints to go on from, and folders for others to load."""
