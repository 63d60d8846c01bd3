"""Do samples of digits look like the digit that was asked for? A classifier trained on the real ones says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dydit_cli.data.digits import load_digits_split
from dydit_cli.diffusion.generate import Progress, cycle_labels
from dydit_cli.diffusion.sampler import SamplerSettings
from dydit_cli.model.dit import DiT
from dydit_cli.sampling.painter import draw


@dataclass(frozen=True)
class DigitClassifier:
    """A support-vector classifier. `accuracy` is its share of right answers on the 360 held-out real digits."""

    accuracy: float
    _svc: Any

    def predict(self, images: Tensor) -> Tensor:
        """images: M 1 8 8 in [-1, 1] -> (M,) int64."""
        return torch.from_numpy(self._svc.predict(_pixels(images))).long()

    def recognised(self, images: Tensor, labels: Tensor) -> float:
        """The share of `images` that are seen as their label."""
        return (self.predict(images) == labels).double().mean().item()


@dataclass(frozen=True)
class Judgement:
    """samples: M 1 8 8; `recognised` is the share seen as their class; `seconds` is what drawing them took."""

    samples: Tensor
    recognised: float
    seconds: float


def judge(
    model: DiT,
    *,
    images: int,
    settings: SamplerSettings = SamplerSettings(),
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> Judgement:
    """Draws `images` digits, the ten classes in turn, and lets the classifier say what they are.

    A DyDiT is run sparse. The figure in the bundled model's card is `judge(load("digits-dit"), images=1000)`.
    """
    labels = cycle_labels(list(range(10)), images)
    samples, seconds = draw(model, labels, settings, seed=seed, on_progress=on_progress)
    return Judgement(samples, digit_classifier().recognised(samples, labels), seconds)


@lru_cache(maxsize=1)
def digit_classifier() -> DigitClassifier:
    """Trained in a fraction of a second on the 1,437 training digits; deterministic."""
    from sklearn.svm import SVC

    training, held_out = load_digits_split(), load_digits_split(held_out=True)
    svc = SVC(C=10.0, gamma=0.05).fit(_pixels(training.images), training.labels.numpy())
    accuracy = float(np.mean(svc.predict(_pixels(held_out.images)) == held_out.labels.numpy()))
    return DigitClassifier(accuracy, svc)


def _pixels(images: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return images.flatten(1).clamp(-1, 1).double().numpy()
