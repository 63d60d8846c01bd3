"""What samples are compared with: an ADM reference batch, images, or those of a data set; and images in an .npz."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dydit_cli.errors import DyditError
from dydit_cli.evaluate.features import Extractor, Pixels, extract_features
from dydit_cli.evaluate.images import (
    FolderImages,
    Images,
    OnWork,
    Preprocessor,
    labels_in_turn,
    named_images,
    read_record,
)
from dydit_cli.evaluate.metrics import Gaussian, Manifold
from dydit_cli.files import sha256

IMAGES, LABELS = "arr_0", "arr_1"

POOL, SPATIAL = ("mu", "sigma"), ("mu_s", "sigma_s")

LARGEST_MANIFOLD = 10_000  # images of a reference that precision and recall are against: as many as ADM's batches hold

LARGEST_HEADER = 10_000  # bytes, numpy's own limit


class NpzImages(Images):
    """arr_0 of the file `path`, uint8 M S S C, read a batch at a time.

    Their classes are arr_1's, as in ADM's sample files, or those that samples.json beside the file records. Raises
    `DyditError` where arr_0 is missing or no images.
    """

    def __init__(self, path: Path) -> None:
        names = array_names(path)
        if IMAGES not in names:
            text = ", ".join(names) or "nothing"
            raise DyditError(f"{path}: has no {IMAGES} (it has {text}); give an .npz with images N S S 3")
        with _member(path, IMAGES) as file:
            shape, fortran, dtype = _header(file)
        if dtype != np.uint8:
            raise DyditError(f"{path}: {IMAGES} is {dtype}; the suite wants uint8 from 0 to 255: scale, round and convert it")
        if fortran or len(shape) != 4 or shape[-1] not in (1, 3) or not all(shape):
            raise DyditError(f"{path}: {IMAGES} has shape {shape}; it must be N S S 3 (or 1), in C order")
        record = read_record(path.parent)
        if record.get("images") != shape[0]:
            record = {}  # of something else that lies there
        labels = labels_in_turn(record, shape[0])
        if LABELS in names:
            given = read_array(path, LABELS)
            if given.shape == (shape[0],) and np.issubdtype(given.dtype, np.integer):
                labels = given.astype(np.int64)
        super().__init__(str(path), shape[0], labels, record)
        self.path, self._shape = path, shape[1:]  # S S C

    def batches(self, size: int, preprocess: Preprocessor, on_work: OnWork) -> Iterator[Pixels]:
        length = math.prod(self._shape)
        with _member(self.path, IMAGES) as file:
            _header(file)
            for start in range(0, self.count, size):
                count = min(size, self.count - start)
                data = file.read(count * length)
                if len(data) < count * length:
                    raise DyditError(f"{self.path}: damaged: {IMAGES} ends after image {start}; make or fetch it again")
                yield preprocess(np.frombuffer(data, dtype=np.uint8).reshape(count, *self._shape))
                on_work(count)

    def sha256(self) -> str:
        return sha256(self.path)


def read_gaussians(path: Path) -> tuple[Gaussian | None, Gaussian | None]:
    """The pool's and the spatial features' moments that an ADM reference batch holds, each None where it has neither
    array; raises `DyditError` where it has one without the other, or shapes do not fit."""
    names = array_names(path)
    pool, spatial = (_gaussian(path, names, *pair) for pair in (POOL, SPATIAL))
    return pool, spatial


def _gaussian(path: Path, names: list[str], mean_name: str, covariance_name: str) -> Gaussian | None:
    existing = [name for name in (mean_name, covariance_name) if name in names]
    if len(existing) == 1:
        absent = covariance_name if existing == [mean_name] else mean_name
        raise DyditError(f"{path}: has {existing[0]} without {absent}; fetch the reference batch again")
    if not existing:
        return None
    mean, covariance = read_array(path, mean_name), read_array(path, covariance_name)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise DyditError(
            f"{path}: {mean_name} {mean.shape} {mean.dtype} and {covariance_name} {covariance.shape} {covariance.dtype} "
            "are no mean and covariance; fetch the reference batch again"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DyditError(f"{path}: {mean_name} or {covariance_name} holds NaN or Inf; fetch the reference batch again")
    return Gaussian(mean.astype(np.float64), covariance.astype(np.float64))


def array_names(path: Path) -> list[str]:
    """The arrays in an .npz; raises `DyditError` where it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (OSError, zipfile.BadZipFile) as error:
        raise DyditError(f"{path}: not readable as .npz ({getattr(error, 'strerror', None) or error})") from None


def read_array(path: Path, name: str) -> NDArray[Any]:
    """One whole array; raises `DyditError` where it is damaged or holds Python objects, which are code."""
    with _member(path, name) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array


@contextmanager
def _member(path: Path, name: str) -> Iterator[IO[bytes]]:
    """The .npy inside the .npz; whatever a damaged file raises while it is read becomes one line."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            yield file
    except DyditError:
        raise
    # zlib, zipfile and numpy each have errors of their own for bytes that make no sense
    except Exception as error:
        raise DyditError(f"{path}: {name} is damaged ({str(error)[:100] or type(error).__name__}); make it again") from None


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and dtype; leaves the file at the first byte of the data."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file, max_header_size=LARGEST_HEADER)


@dataclass(frozen=True, eq=False)
class ReferenceStats:
    """The reference in an extractor's features: the Gaussian; the spatial one or None; the pool features M x D of its images,
    at most 10,000 of them, or None; the protocol's facts; and notes on what it lacks."""

    gaussian: Gaussian
    spatial: Gaussian | None
    pool: NDArray[np.float32] | None
    facts: dict[str, Any]
    notes: list[str]
    _manifolds: dict[torch.device, Manifold] = field(default_factory=dict)

    def manifold(self, device: torch.device) -> Manifold | None:
        """Of its pool features, on `device`, computed once; None where it has none."""
        if self.pool is not None and device not in self._manifolds:
            self._manifolds[device] = Manifold.of(torch.from_numpy(self.pool).to(device))
        return self._manifolds.get(device)


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference before any feature is computed: `images`, or moments, or both.

    `digest` returns the sha256 of the file, of a folder's names and files, or of a data set's pixels, in hexadecimal. `known`
    holds what was computed of it, by extractor and side: a study compares every row with the same reference.
    """

    name: str
    images: Images | None
    digest: Callable[[], str]
    gaussian: Gaussian | None = None
    spatial: Gaussian | None = None
    known: dict[tuple[Extractor, int | None], ReferenceStats] = field(default_factory=dict)


def open_reference(reference: str | Path | None, extractor: Extractor) -> Reference:
    """Raises `DyditError` where it is missing, or holds neither moments nor images."""
    if reference is None:
        if extractor.data is None:
            raise DyditError(
                f"--features {extractor.name} needs a --reference: an ADM .npz, a folder of real images, or a data set such as "
                "fashion"
            )
        reference = extractor.data
    path, named = Path(reference), named_images(str(reference))
    images = named or (FolderImages(path) if path.is_dir() else None)
    if images is not None:
        return Reference(images.name, images, images.sha256)
    if not path.is_file():
        raise DyditError(
            f"--reference {reference}: no such file; give an ADM .npz, a folder of images, or a data set such as digits"
        )
    pool, spatial = read_gaussians(path)
    names = array_names(path)
    array = NpzImages(path) if IMAGES in names else None
    if pool is None and array is None:
        raise DyditError(
            f"{path}: has neither {' and '.join(POOL)} nor {IMAGES} (it has {', '.join(names) or 'nothing'}); "
            "give an ADM reference batch"
        )
    return Reference(str(path), array, partial(sha256, path), pool, spatial)


def reference_stats(
    reference: Reference, extractor: Extractor, side: int | None, batch: int, on_work: OnWork
) -> ReferenceStats:
    """The features of the reference's images, brought to the samples' `side`; stored moments stand before computed ones.

    What is known of it already is returned again. Of more than 10,000 images so many, evenly spread, are kept in the pool.
    Raises `DyditError` where stored moments are of other features, or there are fewer than 2 images.
    """
    if (extractor, side) in reference.known:
        return reference.known[extractor, side]
    preprocess, notes = Preprocessor(side, extractor.channels), []
    stats = None
    if reference.images is not None:
        if reference.images.count < 2:
            raise DyditError(f"{reference.name}: {reference.images.count} image; a covariance needs 2 and more")
        stats = extract_features(extractor, reference.images.batches(batch, preprocess, on_work))
    moments = reference if reference.gaussian is not None else stats
    if moments is None or moments.gaussian is None:
        raise DyditError(f"{reference.name}: has neither moments nor images; give an ADM reference batch")
    if "sfid" in extractor.figures and moments.spatial is None:
        notes.append(f"{reference.name} has no {' and '.join(SPATIAL)}: no sFID")
    if stats is None:
        notes.append(f"{reference.name} has no images ({IMAGES}): no precision and recall")
    facts = {
        "reference": reference.name,
        "reference_moments": "stored" if reference.gaussian is not None else "computed",
        "reference_images": reference.images.count if reference.images is not None else None,
        "reference_sha256": reference.digest(),
        "reference_resize": preprocess.resize,
    }
    pool = stats.pool if stats else None
    if pool is not None and len(pool) > LARGEST_MANIFOLD:
        pool = pool[np.linspace(0, len(pool) - 1, LARGEST_MANIFOLD).round().astype(np.int64)]
        facts["precision_recall"] = f"against {LARGEST_MANIFOLD:,} of the reference's images, evenly spread"
    known = ReferenceStats(moments.gaussian, moments.spatial, pool, facts, notes)
    reference.known[extractor, side] = known
    return known
