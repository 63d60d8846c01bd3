"""The commands: each parses its options, makes one library call and renders what came back."""
