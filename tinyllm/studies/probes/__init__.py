"""Synthetic tasks that show in CPU minutes what a composition can and cannot do."""
