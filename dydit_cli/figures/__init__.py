"""Pictures, drawn from profiles alone: no figure runs a model."""
