"""Probes: synthetic tasks that show in CPU minutes what a model composition can and cannot do."""
