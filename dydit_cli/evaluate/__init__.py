"""Whether samples are good."""
