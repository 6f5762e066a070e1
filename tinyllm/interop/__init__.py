"""Import from and export to Hugging Face transformers: config.json, weights and tokenizers."""
