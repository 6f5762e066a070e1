"""Rewards: numbers that say how good an answer is, without a person."""
