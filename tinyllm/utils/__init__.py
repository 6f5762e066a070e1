"""What every layer may use and that knows nothing of models: files."""
