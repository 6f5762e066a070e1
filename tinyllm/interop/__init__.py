"""Models of Hugging Face transformers in and out: which configuration is which, weight by weight."""
