"""scikit-learn's handwritten digits, which come with it."""

from __future__ import annotations

from functools import lru_cache

import torch

from dydit_cli.data.dataset import ImageData
from dydit_cli.data.registry import SupportVectors, dataset


@dataset("digits", classifier=SupportVectors(c=10.0, gamma=0.05))
@lru_cache(maxsize=2)
def load_digits_split(held_out: bool = False) -> ImageData:
    """1,797 digits, 8x8, in [-1, 1].

    A fifth of each class (360 images) is held out from everything that is trained; `held_out` chooses that part.
    They are never mirrored: a mirrored 2 is no digit.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pair = train_test_split(bunch.images, bunch.target, test_size=0.2, random_state=0, stratify=bunch.target)
    images, labels = (pair[1], pair[3]) if held_out else (pair[0], pair[2])
    pixels = torch.from_numpy(images).float().div(8).sub(1).unsqueeze(1)  # M 1 8 8, from 0..16
    return ImageData("digits", pixels, torch.from_numpy(labels).long(), 10)
