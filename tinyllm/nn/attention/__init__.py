"""Attention layers, one file each, and their kernels."""
