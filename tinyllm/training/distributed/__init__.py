"""Several processes: strategies, process groups, heartbeats."""
