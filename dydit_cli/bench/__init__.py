"""Timing: static against masked, sparse and compiled, interleaved, and where the time goes."""
