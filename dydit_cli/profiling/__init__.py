"""What a model does over a sampling run: recorded, counted, tabulated."""
