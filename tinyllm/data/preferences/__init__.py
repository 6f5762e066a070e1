"""Preferences: pairs of answers to a prompt, of which one was chosen."""
