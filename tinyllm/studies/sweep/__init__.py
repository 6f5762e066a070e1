"""Many runs of one command: their directories, what became of each, and the search for good settings."""
