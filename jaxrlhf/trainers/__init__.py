"""One flat program a method: `run(config)`."""
