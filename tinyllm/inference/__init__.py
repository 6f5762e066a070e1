"""Text generation from a model, and evaluation of a model on text."""
