"""Recipes: stages of training, one after the other, with what is measured after each."""
