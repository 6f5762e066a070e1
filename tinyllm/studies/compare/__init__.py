"""Comparisons: arms, matching, budgets, the runs of all arms, and the statistics of their differences."""
