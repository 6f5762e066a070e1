"""Several processes that train together, on this machine's CPU, connected by gloo."""
