"""Recipes, data and the loop that pre-trains, fine-tunes and runs the static control."""
