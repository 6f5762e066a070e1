"""Text and numbers: corpora, their token cache, the order of training, batches."""
