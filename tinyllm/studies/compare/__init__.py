"""A comparison: its arms, what is matched between them, their runs, and what the figures allow to say."""
