"""What figures are computed from: the features of images by a network, which is an `Extractor`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dydit_cli.evaluate.metrics import Gaussian, Moments

Pixels = NDArray[np.uint8]

# the figures of a judge, in their order; the first is its Fréchet distance, which is called FID in Inception's features alone
ADM_FIGURES = ("fid", "sfid", "inception_score", "precision", "recall")
CLASS_FIGURES = ("frechet", "recognised", "precision", "recall")
DISTANCE_ONLY = ("frechet", "precision", "recall")


@dataclass(frozen=True)
class Features:
    """Of one batch. pool: M x D; spatial: M x D', for sFID, or None; probabilities: M x K, for the inception score, or None."""

    pool: NDArray[np.float32]
    spatial: NDArray[np.float32] | None = None
    probabilities: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Extractor:
    """A network that takes images of `channels` channels and `side` pixels a side (None: of any size).

    `name` is what `--features` calls it, and `data` the data set of whose classes it is, None for a network of all kinds of
    images; `facts` are the protocol's: what network it is, its accuracy where that is known, the sha256 of its weights.
    `extract` returns the features of M S S C uint8, and `figures` are those that it has, the distance first.
    """

    name: str
    data: str | None
    side: int | None
    channels: int
    facts: dict[str, Any]
    extract: Callable[[Pixels], Features]
    figures: tuple[str, ...]


@dataclass(frozen=True)
class FeatureStats:
    """The features of a set of images: pool: M x D float32; the two Gaussians; probabilities: M x K or None."""

    pool: NDArray[np.float32]
    gaussian: Gaussian
    spatial: Gaussian | None
    probabilities: NDArray[np.float32] | None


def extract_features(extractor: Extractor, batches: Iterable[Pixels]) -> FeatureStats:
    """Runs `extractor` over batches M S S C; of the spatial features, the largest, only the moments are kept.

    Raises ValueError for fewer than 2 images.
    """
    pools: list[NDArray[np.float32]] = []
    probabilities: list[NDArray[np.float32]] = []
    moments, spatial = Moments(), Moments()
    for pixels in batches:
        features = extractor.extract(pixels)
        pools.append(features.pool)
        moments.add(features.pool)
        if features.spatial is not None:
            spatial.add(features.spatial)
        if features.probabilities is not None:
            probabilities.append(features.probabilities)
    gaussian = moments.gaussian()
    return FeatureStats(
        np.concatenate(pools),
        gaussian,
        spatial.gaussian() if spatial.count else None,
        np.concatenate(probabilities) if probabilities else None,
    )
