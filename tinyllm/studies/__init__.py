"""The programs that handle many runs: sweeps, comparisons, scaling laws, probes, and their reports."""
