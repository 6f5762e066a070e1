"""Optimizers, learning-rate schedules, parameter groups and the average of the weights."""
