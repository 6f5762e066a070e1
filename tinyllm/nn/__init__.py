"""Layers: plain torch modules that know nothing of configurations.

Suffixes of tensor names give the shape: B batch, T tokens (queries), S keys, C = d_model, H heads, G key-value heads,
D = head_dim, F hidden size of a feed-forward layer, V vocabulary, N tokens with the batch flattened.
"""
