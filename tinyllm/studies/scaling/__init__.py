"""Scaling laws: a ladder of sizes at fixed FLOPs, and the law through it."""
