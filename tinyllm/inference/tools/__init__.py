"""Tools that a model may call in the middle of an answer."""
