"""Sweeps: many runs of one command, over a grid of values or in a search for good ones."""
