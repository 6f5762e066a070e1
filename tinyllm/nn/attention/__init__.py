"""Attention layers, one file each, and the kernels they share."""
