"""What DyDiT is compared with: static models that are narrower for good, by structural pruning."""
