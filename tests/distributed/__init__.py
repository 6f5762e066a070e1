"""Training with several processes on the CPU, connected by gloo."""
