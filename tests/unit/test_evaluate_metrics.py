"""The figures against straightforward arithmetic on random features, closed forms, and their sides."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray

from dydit_cli.evaluate import metrics
from dydit_cli.evaluate.metrics import (
    Gaussian,
    Moments,
    frechet_deviation,
    frechet_distance,
    inception_score,
    manifold_radii,
    precision_recall,
)

Array = NDArray[np.float64]


def features(count: int, width: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Array:
    """Correlated and skewed, as a network's are."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(width, width))
    return np.asarray(np.maximum(generator.normal(size=(count, width)) @ mixing, 0) * scale + shift)


def gaussian_of(values: NDArray[Any]) -> Gaussian:
    moments = Moments()
    moments.add(values)
    return moments.gaussian()


def pair(a: Array, b: Array, k: int = 3) -> tuple[float | None, float | None]:
    return precision_recall(torch.from_numpy(a), torch.from_numpy(b), k)


def by_hand(reference: Array, samples: Array, k: int) -> tuple[float, float]:
    """Kynkäänniemi's definition, one image at a time."""

    def radii(points: Array) -> list[float]:
        return [sorted(math.dist(p, q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]

    def covered(points: Array, centres: Array, around: list[float]) -> float:
        hits = [any(math.dist(p, c) <= r for c, r in zip(centres, around, strict=True)) for p in points]
        return sum(hits) / len(hits)

    return covered(samples, reference, radii(reference)), covered(reference, samples, radii(samples))


@pytest.mark.parametrize("width", [1, 5, 40])
def test_frechet_is_the_matrix_square_roots(width: int) -> None:
    a, b = features(300, width, 1), features(200, width, 2, shift=0.3, scale=1.4)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * np.real(root))
    assert frechet_distance(gaussian_of(a), gaussian_of(b)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(gaussian_of(b), gaussian_of(a)) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_gaussians_with_common_axes_is_the_closed_form() -> None:
    """Some variances are 0: the product is singular, and one of the two covariances alone is."""
    generator = np.random.default_rng(3)
    axes, _ = np.linalg.qr(generator.normal(size=(30, 30)))
    va, vb = generator.uniform(0.1, 4, 30), generator.uniform(0.1, 4, 30)
    va[:10] = 0
    vb[5:20] = 0
    ma, mb = generator.normal(size=(2, 30))
    distance = frechet_distance(Gaussian(ma, (axes * va) @ axes.T), Gaussian(mb, (axes * vb) @ axes.T))
    assert distance == pytest.approx(((ma - mb) ** 2).sum() + ((np.sqrt(va) - np.sqrt(vb)) ** 2).sum(), rel=1e-9)


def test_frechet_of_fewer_images_than_features() -> None:
    few, many = features(8, 64, 4), features(4000, 64, 4)
    assert frechet_distance(gaussian_of(few), gaussian_of(few)) == pytest.approx(0, abs=1e-6)
    assert math.isfinite(frechet_distance(gaussian_of(few), gaussian_of(many)))
    one_direction = Gaussian(np.zeros(2), np.diag([4.0, 0.0]))
    assert frechet_distance(one_direction, Gaussian(np.zeros(2), np.diag([0.0, 9.0]))) == pytest.approx(13)
    assert frechet_distance(one_direction, Gaussian(np.ones(2), np.diag([9.0, 0.0]))) == pytest.approx(3)


def test_the_deviation_over_draws_is_foretold_by_one() -> None:
    """Against the spread of 400 draws, of a Gaussian that is far from the other and of one that is near it; a feature that is
    always the same adds nothing."""
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(5, 5))
    other = gaussian_of(np.pad(generator.normal(size=(4000, 5)), ((0, 0), (0, 1))))
    for shift, scale in ((2.0, 1.5), (0.1, 1.0)):
        draws = [
            np.pad(generator.normal(size=(300, 5)) @ mixing * scale + shift, ((0, 0), (0, 1)), constant_values=3.0)
            for _ in range(400)
        ]
        distances = [frechet_distance(gaussian_of(draw), other) for draw in draws]
        foretold = [frechet_deviation(draw, gaussian_of(draw), other) for draw in draws[:20]]
        assert np.mean([value for value in foretold if value is not None]) == pytest.approx(np.std(distances, ddof=1), rel=0.12)
    few = generator.normal(size=(6, 6))
    assert frechet_deviation(few, gaussian_of(few), other) is None


def test_frechet_of_unequal_features_is_refused() -> None:
    with pytest.raises(ValueError, match="3 features on one side and 4 on the other"):
        frechet_distance(gaussian_of(features(9, 3, 0)), gaussian_of(features(9, 4, 0)))


@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3], [7, 50, 50, 99]])
def test_moments_in_parts_are_numpys(cuts: list[int]) -> None:
    """The offset would eat half of the digits of a sum of squares."""
    x = features(100, 6, 5, shift=1e6)
    moments = Moments()
    for part in np.split(x, cuts):
        moments.add(part)
    gaussian = moments.gaussian()
    assert gaussian.count == 100
    np.testing.assert_allclose(gaussian.mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(gaussian.covariance, np.cov(x, rowvar=False), rtol=1e-7, atol=1e-9)


def test_moments_of_half_precision_are_taken_in_double() -> None:
    x = (features(5000, 3, 6) + 30).astype(np.float16)
    np.testing.assert_allclose(gaussian_of(x).covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-12)


@pytest.mark.parametrize("count", [0, 1])
def test_a_covariance_needs_two_images(count: int) -> None:
    with pytest.raises(ValueError, match=f"needs 2 images; there are {count}"):
        gaussian_of(np.zeros((count, 4)))


def test_inception_score_by_hand() -> None:
    generator = np.random.default_rng(7)
    p = generator.dirichlet(np.full(5, 0.3), size=23)

    def whole(part: Array) -> float:
        total = 0.0
        for row in part:
            total += sum(x * math.log(x / part[:, j].mean()) for j, x in enumerate(row) if x > 0)
        return math.exp(total / len(part))

    assert inception_score(p) == pytest.approx(whole(p), rel=1e-12)
    parts = [whole(p[:10]), whole(p[10:20]), whole(p[20:])]
    assert inception_score(p, split=10) == pytest.approx(sum(parts) / 3, rel=1e-12)
    assert metrics.SPLIT == 5000


def test_inception_score_ends_at_1_and_at_the_number_of_classes() -> None:
    assert inception_score(np.full((40, 8), 1 / 8)) == pytest.approx(1)
    assert inception_score(np.tile([1.0, 0, 0], (9, 1))) == pytest.approx(1)
    assert inception_score(np.eye(8)[np.arange(40) % 8]) == pytest.approx(8)
    with pytest.raises(ValueError, match="there are none"):
        inception_score(np.empty((0, 4)))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_by_hand(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of the blocks, and the numbers of images on the sides."""
    reference, samples = features(37, 4, 8), features(52, 4, 12, shift=0.8, scale=0.7)
    expected = by_hand(reference, samples, k)
    assert 0 < expected[0] < 1
    assert 0 < expected[1] < 1
    assert expected[0] != expected[1]
    for rows, columns in ((1024, 8192), (5, 7), (52, 1), (1, 52)):
        monkeypatch.setattr(metrics, "ROWS", rows)
        monkeypatch.setattr(metrics, "COLUMNS", columns)
        assert pair(reference, samples, k) == pytest.approx(expected)
        assert pair(samples, reference, k) == pytest.approx(expected[::-1])


def test_the_sides_of_precision_and_recall() -> None:
    """Samples in a small part of the reference are all precise and recall little; a set too wide the other way round."""
    generator = np.random.default_rng(9)
    wide, narrow = generator.uniform(-1, 1, (600, 2)), generator.uniform(-0.2, 0.2, (600, 2))
    precision, recall = pair(wide, narrow)
    assert precision is not None
    assert recall is not None
    assert precision > 0.95
    assert recall < 0.1
    precision, recall = pair(narrow, wide)
    assert precision is not None
    assert recall is not None
    assert precision < 0.1
    assert recall > 0.95


def test_equal_and_distant_sets() -> None:
    x = features(50, 16, 10)
    assert pair(x, x) == (1, 1)
    assert pair(x, x + 1000) == (0, 0)
    # far from the origin the products cancel; and with five copies of each the radii are 0
    copies = np.repeat(x, 5, axis=0) + 1e5
    assert pair(copies, copies) == (1, 1)


def test_a_manifold_needs_more_images_than_neighbours() -> None:
    few, many = features(3, 2, 11), features(30, 2, 11)
    assert pair(few, many)[0] is None
    assert pair(few, many)[1] is not None
    assert pair(many, few)[0] is not None
    assert pair(many, few)[1] is None
    with pytest.raises(ValueError, match="3 neighbours need more than 3 images; there are 3"):
        manifold_radii(torch.from_numpy(few))


def test_the_radius_is_to_the_kth_other_image() -> None:
    line: Any = torch.tensor([[0.0], [1.0], [3.0], [7.0], [15.0]], dtype=torch.float64)
    assert manifold_radii(line, 1).sqrt().tolist() == [1, 1, 2, 4, 8]
    assert manifold_radii(line, 3).sqrt().tolist() == [7, 6, 4, 7, 14]
