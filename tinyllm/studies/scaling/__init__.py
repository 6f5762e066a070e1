"""Scaling laws: train a ladder of sizes at fixed FLOP budgets and fit a law to the losses."""
