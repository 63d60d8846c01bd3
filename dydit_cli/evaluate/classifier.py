"""The share of samples that a classifier, trained on the real images of a data set, takes for the class asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dydit_cli.data.dataset import Dataset
from dydit_cli.data.load import find_source, load_data, load_held_out
from dydit_cli.diffusion.generate import Progress, cycle_labels
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import Backbone
from dydit_cli.model.caching import CacheOptions
from dydit_cli.model.execution import executor
from dydit_cli.sampling.sampler import run_sampler


@dataclass(frozen=True)
class Classifier:
    """A support-vector classifier. `accuracy` is its share of right answers on the held-out real images."""

    accuracy: float
    _svc: Any

    def predict(self, images: Tensor) -> Tensor:
        """images: M 1 S S in [-1, 1] -> (M,) int64."""
        return torch.from_numpy(self._svc.predict(_pixels(images))).long()

    def class_accuracy(self, images: Tensor, labels: Tensor) -> float:
        """The share of `images` M 1 S S whose predicted class is their label (M,)."""
        return (self.predict(images) == labels).double().mean().item()


@dataclass(frozen=True)
class ClassifiedSamples:
    """samples: M 1 S S; `class_accuracy` is the share whose predicted class is their own; `seconds` of sampling."""

    samples: Tensor
    class_accuracy: float
    seconds: float


def classify_samples(
    model: Backbone,
    *,
    images: int,
    settings: SamplerSettings = SamplerSettings(),
    seed: int = 0,
    cache: CacheOptions = CacheOptions(),
    on_progress: Callable[[Progress], None] | None = None,
) -> ClassifiedSamples:
    """Samples `images` digits, the classes in turn, and classifies them by the digits' classifier.

    A DyDiT runs sparse. The figure in a digits model's card is `classify_samples(load("digits-dit"), images=1000)`.
    """
    labels = cycle_labels(list(range(load_data("digits").num_classes)), images)
    start = time.perf_counter()
    samples = run_sampler(executor(model, "sparse", cache=cache), labels, settings, 0, 64, seed, on_progress)
    seconds = time.perf_counter() - start
    return ClassifiedSamples(samples, classifier("digits").class_accuracy(samples, labels), seconds)


@cache
def classifier(data: str = "digits") -> Classifier:
    """The classifier of the data set `data`, trained on its training part: digits in under a second.

    It is deterministic. Raises `DyditError` for a data set without one.
    """
    from sklearn.svm import SVC

    parameters, held_out = find_source(data)[0].classifier, load_held_out(data)
    if parameters is None or held_out is None:
        raise DyditError(f"data set {data} has no classifier")
    svc = SVC(C=parameters.c, gamma=parameters.gamma)
    svc.fit(*_examples(load_data(data)))
    pixels, labels = _examples(held_out)
    return Classifier(float(np.mean(svc.predict(pixels) == labels)), svc)


def _examples(data: Dataset) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    images, labels = data.take(torch.arange(len(data)))
    return _pixels(images), labels.numpy()


def _pixels(images: Tensor) -> NDArray[np.float64]:
    return images.flatten(1).clamp(-1, 1).double().numpy()
