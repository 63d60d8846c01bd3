"""Labelled images to train on, by name: the bundled digits, folders of pictures, and latents encoded once."""
