"""Faults injected for real, and what becomes of the run."""
