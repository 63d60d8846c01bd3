"""Random seeds: which numbers they are, and how one makes many."""

from __future__ import annotations

from dydit_cli.errors import DyditError

LARGEST = 2**63 - 1


def check_seed(seed: int) -> int:
    """`seed`; raises `DyditError` where PyTorch's generators do not take it."""
    if not 0 <= seed <= LARGEST:
        raise DyditError(f"seed {seed}; it must be a whole number from 0 to {LARGEST}")
    return seed


def derived(seed: int, stride: int, index: int) -> int:
    """The seed number `index` of those that `seed` makes, `stride` apart from those of the next one."""
    return (seed * stride + index) % 2**64
