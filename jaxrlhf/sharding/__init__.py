"""The device mesh, what each device holds, the way to it and back, and start-up over many processes."""
