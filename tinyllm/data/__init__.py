"""Data: corpora, the token cache, the order of training, batches."""
