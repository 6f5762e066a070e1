"""Objectives: what a batch is asked for, and the loss of it."""
