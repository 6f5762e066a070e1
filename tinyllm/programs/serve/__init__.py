"""The HTTP server of trained models: the interface of OpenAI's API on the framework's own batched decoding."""
