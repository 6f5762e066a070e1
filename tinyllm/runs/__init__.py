"""A run on disk: its directory, checkpoints, metrics, seal, and how runs are listed and queried."""
