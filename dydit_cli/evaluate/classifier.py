"""Do samples look like the digit or letter that was asked for? A classifier trained on the real ones says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dydit_cli.data.load import BUNDLED
from dydit_cli.diffusion.generate import Progress, cycle_labels
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.model.backbone import Backbone
from dydit_cli.sampling.sampler import draw


@dataclass(frozen=True)
class Classifier:
    """A support-vector classifier. `accuracy` is its share of right answers on the held-out real images."""

    accuracy: float
    _svc: Any

    def predict(self, images: Tensor) -> Tensor:
        """images: M 1 S S in [-1, 1] -> (M,) int64."""
        return torch.from_numpy(self._svc.predict(_pixels(images))).long()

    def recognised(self, images: Tensor, labels: Tensor) -> float:
        """The share of `images` that are seen as their label."""
        return (self.predict(images) == labels).double().mean().item()


@dataclass(frozen=True)
class Judgement:
    """samples: M 1 S S; `recognised` is the share seen as their class; `seconds` is what drawing them took."""

    samples: Tensor
    recognised: float
    seconds: float


def judge(
    model: Backbone,
    *,
    images: int,
    data: str = "digits",
    settings: SamplerSettings = SamplerSettings(),
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> Judgement:
    """Draws `images` samples, the classes of the bundled data set `data` in turn, and lets its classifier say what they are.

    A DyDiT is run sparse. The figure in a bundled model's card is `judge(load("digits-dit"), images=1000)`.
    """
    labels = cycle_labels(list(range(BUNDLED[data]().num_classes)), images)
    samples, seconds = draw(model, labels, settings, seed=seed, on_progress=on_progress)
    return Judgement(samples, classifier(data).recognised(samples, labels), seconds)


@cache
def classifier(data: str = "digits") -> Classifier:
    """Trained on the training images of a bundled data set, digits in a fraction of a second, glyphs in some; deterministic."""
    training, held_out = BUNDLED[data](), BUNDLED[data](held_out=True)
    svc = _untrained(data).fit(_pixels(training.images), training.labels.numpy())
    accuracy = float(np.mean(svc.predict(_pixels(held_out.images)) == held_out.labels.numpy()))
    return Classifier(accuracy, svc)


def _untrained(data: str) -> Any:
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    if data == "digits":
        return SVC(C=10.0, gamma=0.05)
    # 32 components of 256 pixels lose nothing in accuracy, and each of thousands of support vectors costs an eighth
    return make_pipeline(PCA(32, svd_solver="full"), SVC(C=10.0, gamma=0.02))


def _pixels(images: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return images.flatten(1).clamp(-1, 1).double().numpy()
