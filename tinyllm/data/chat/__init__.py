"""Conversations: their messages, how a chat template renders them into tokens, and training on what the model says."""
