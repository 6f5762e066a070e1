"""A run on disk: its directory, checkpoints, metrics and seal, and the listing of runs."""
