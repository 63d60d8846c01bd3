"""The figures of ADM's evaluation suite, as pure functions of features. All arithmetic is float64.

ADM: Dhariwal and Nichol, arXiv 2105.05233, whose evaluator these functions follow; the papers of the single figures stand
beside them. Shapes: M images, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Float = NDArray[np.float64]

SPLIT = 5000  # images of one inception score: ADM's ten splits of 50,000

NEIGHBOURS = 3

ROWS, COLUMNS = 1024, 8192  # of a block of distances, 64 MiB; D enters only through two slices of the features


@dataclass(frozen=True)
class Gaussian:
    """mean: (D,); covariance: D x D, both float64; of `count` images, where that is known."""

    mean: Float
    covariance: Float
    count: int | None = None

    @cached_property
    def root(self) -> Float:
        """The symmetric square root of the covariance; directions whose variance is a rounding, of either sign, have none."""
        variances, directions = np.linalg.eigh((self.covariance + self.covariance.T) / 2)
        noise = len(variances) * np.finfo(np.float64).eps * max(variances[-1], 0.0)
        roots = np.sqrt(np.where(variances > noise, variances, 0.0))
        root: Float = (directions * roots) @ directions.T
        return root


class Moments:
    """Mean and covariance of features that come in parts (Chan, Golub and LeVeque, 1979), without cancellation."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Any = 0.0
        self._scatter: Any = 0.0  # the sum of outer products of what is left after the mean

    def add(self, features: NDArray[Any]) -> None:
        """features: M x D of any real dtype."""
        part = np.asarray(features, dtype=np.float64)
        if not len(part):
            return
        mean = part.mean(axis=0)
        centred, apart = part - mean, mean - self._mean
        total = self.count + len(part)
        self._scatter = self._scatter + centred.T @ centred + np.outer(apart, apart) * (self.count * len(part) / total)
        self._mean = self._mean + apart * (len(part) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """The mean, and the covariance with M - 1 below, as `numpy.cov`. Raises ValueError for fewer than 2 images."""
        if self.count < 2:
            raise ValueError(f"a covariance needs 2 images; there are {self.count}")
        return Gaussian(self._mean, self._scatter / (self.count - 1), self.count)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), in squared units of a feature (FID: Heusel et al., arXiv
    1706.08500, eq. 6; sFID: Nash et al., arXiv 2103.03841).

    The last trace is the sum of the singular values of S_a^(1/2) S_b^(1/2). So no matrix that may be singular is
    inverted, nothing turns complex and no 1e-6 is added to diagonals, which fewer images than features would want
    otherwise. Raises ValueError for Gaussians of unequal D.
    """
    if a.mean.shape != b.mean.shape or a.covariance.shape != b.covariance.shape:
        raise ValueError(f"{len(a.mean)} features on one side and {len(b.mean)} on the other")
    apart = a.mean - b.mean
    shared = np.linalg.svd(a.root @ b.root, compute_uv=False).sum()
    distance = apart @ apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared
    return max(float(distance), 0.0)  # equal Gaussians differ by a rounding, which may have either sign


def frechet_deviation(features: NDArray[Any], a: Gaussian, b: Gaussian) -> float | None:
    """The standard deviation of `frechet_distance(a, b)` over draws of as many samples, to first order, `b` being fixed.

    features: M x D, of which `a` is. A sample x adds (1 / M) (2 (m_a - m_b) x + x (1 - T) x) to it, x less m_a, where T is the
    optimal map from S_a to S_b (the derivative of the Bures-Wasserstein distance: Bhatia, Jain and Lim, arXiv 1712.01504).
    None for no more samples than features, whose covariance is singular.
    """
    count, width = features.shape
    if count <= width:
        return None
    variances, directions = np.linalg.eigh((a.covariance + a.covariance.T) / 2)
    there = variances > width * np.finfo(np.float64).eps * max(variances[-1], 0.0)
    roots, axes = np.sqrt(variances[there]), directions[:, there]
    middle = roots[:, None] * (axes.T @ b.covariance @ axes) * roots
    squares, turned = np.linalg.eigh((middle + middle.T) / 2)
    transport = ((turned * np.sqrt(np.clip(squares, 0, None))) @ turned.T) / roots[:, None] / roots
    apart = np.asarray(features, dtype=np.float64) - a.mean
    along = apart @ axes
    influence = 2 * apart @ (a.mean - b.mean) + np.square(apart).sum(axis=1) - ((along @ transport) * along).sum(axis=1)
    return float(influence.std(ddof=1) / np.sqrt(count))


def inception_score(probabilities: NDArray[Any], split: int = SPLIT) -> float:
    """exp of the mean KL(p(y|x) || p(y)), from 1 to K (Salimans et al., arXiv 1606.03498).

    probabilities: M x K, rows summing to 1. As in ADM the images are cut, in their order, into parts of `split`, the
    last one possibly shorter, and the mean of the parts' scores is the score: ten parts for 50,000 images, the whole
    for 5,000 and fewer. Raises ValueError for no images.
    """
    if not len(probabilities):
        raise ValueError("an inception score needs images; there are none")
    scores = []
    for start in range(0, len(probabilities), split):
        part = np.asarray(probabilities[start : start + split], dtype=np.float64)
        marginal = part.mean(axis=0, keepdims=True)
        # a class of probability 0 adds nothing: p log p goes to 0
        terms = part * np.log(np.divide(part, marginal, out=np.ones_like(part), where=part > 0))
        scores.append(np.exp(terms.sum(axis=1).mean()))
    return float(np.mean(scores))


@dataclass(frozen=True, eq=False)
class Manifold:
    """features: M x D float64, less `centre` (D,); radii: (M,), `manifold_radii` of them, or None for too few images."""

    centre: Tensor
    features: Tensor
    radii: Tensor | None

    @classmethod
    def of(cls, features: Tensor, k: int = NEIGHBOURS, centre: Tensor | None = None) -> Manifold:
        """features: M x D, real. Without a `centre` it is their mean: products of centred features cancel less."""
        features = features.double()
        centre = features.mean(dim=0) if centre is None else centre
        features = features - centre
        return cls(centre, features, manifold_radii(features, k) if len(features) > k else None)


def precision_recall(reference: Tensor | Manifold, samples: Tensor, k: int = NEIGHBOURS) -> tuple[float | None, float | None]:
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991, eq. 1 and 2).

    `reference`: M x D or its manifold, `samples`: M' x D, real, on one device. Precision is the share of samples that lie
    in the manifold of the reference: within some reference image's distance to its `k`-th nearest other one. Recall is
    the share of reference images that lie in the samples' manifold. A manifold needs more than `k` images: where there are
    fewer, its figure is None. Memory is that of the features and of one block of distances.
    """
    real = reference if isinstance(reference, Manifold) else Manifold.of(reference, k)
    generated = Manifold.of(samples, k, real.centre)
    precision = None if real.radii is None else inside(generated.features, real.features, real.radii)
    recall = None if generated.radii is None else inside(real.features, generated.features, generated.radii)
    return precision, recall


def manifold_radii(features: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """The squared distance of each of features M x D, float64, to its `k`-th nearest other one: (M,).

    Raises ValueError for `k` images or fewer.
    """
    if len(features) <= k:
        raise ValueError(f"{k} neighbours need more than {k} images; there are {len(features)}")
    radii = []
    for start in range(0, len(features), ROWS):
        rows = features[start : start + ROWS]
        nearest = features.new_full((len(rows), k), torch.inf)
        for first in range(0, len(features), COLUMNS):
            block = squared_distances(rows, features[first : first + COLUMNS])
            own = torch.arange(start, start + len(rows), device=block.device) - first  # an image is no neighbour of itself
            here = (own >= 0) & (own < block.shape[1])
            block[here, own[here]] = torch.inf
            nearest = torch.cat([nearest, block], dim=1).topk(k, dim=1, largest=False).values
        radii.append(nearest.amax(dim=1))
    return torch.cat(radii)


def inside(features: Tensor, centres: Tensor, radii: Tensor) -> float:
    """The share of features M x D within any centre's radius; centres: M' x D, radii: (M',) squared; all float64."""
    count = 0
    for start in range(0, len(features), ROWS):
        rows = features[start : start + ROWS]
        within = torch.zeros(len(rows), dtype=torch.bool, device=features.device)
        for first in range(0, len(centres), COLUMNS):
            part = slice(first, first + COLUMNS)
            within |= (squared_distances(rows, centres[part]) <= radii[part]).any(dim=1)
        count += int(within.sum())
    return count / len(features)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """a: M x D, b: M' x D -> M x M', float64; exactly 0 for equal rows."""
    sizes = a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1)
    distances = torch.addmm(sizes, a, b.T, alpha=-2)
    # |a|^2 + |b|^2 - 2ab of equal rows is a rounding: what is smaller than one is no distance
    return distances.masked_fill_(distances < 1e-13 * a.shape[1] ** 0.5 * sizes, 0.0)
