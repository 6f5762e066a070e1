"""The parts a model is made of. They need torch and nothing else, and know neither configs nor each other's
names.

Letters in tensor names: B batch, T tokens (queries), S keys, C = d_model, H heads, G key-value heads, D =
head_dim,
F hidden size of a feed-forward, V vocabulary, N tokens without their batch structure.
"""
