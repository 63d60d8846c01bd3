"""What samples are compared with: an ADM reference batch, images, or those of a bundled data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dydit_cli.checkpoint.lineage import sha256
from dydit_cli.data.load import BUNDLED
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.features import Extractor, look
from dydit_cli.evaluate.fit import Fitter
from dydit_cli.evaluate.images import Images, OnWork, open_folder, real_images
from dydit_cli.evaluate.metrics import Gaussian
from dydit_cli.evaluate.npz import IMAGES, POOL, SPATIAL, array_names, open_npz, read_gaussians

HELD_OUT = ":held-out"  # behind a bundled data set's name


@dataclass(frozen=True)
class Reference:
    """What there is of `name` before anything was looked at: images, or moments, or both; `digest` gives the sha256 of
    the file, of a folder's names and files, or of a bundled set's pixels, in hexadecimal."""

    name: str
    images: Images | None
    digest: Callable[[], str]
    gaussian: Gaussian | None = None
    spatial: Gaussian | None = None


@dataclass(frozen=True)
class Standard:
    """The reference as the extractor sees it: the Gaussian; the spatial one or None; the pool features M x D of its
    images or None; what the protocol says about it; and what is to be said about what it lacks."""

    gaussian: Gaussian
    spatial: Gaussian | None
    pool: NDArray[np.float32] | None
    facts: dict[str, Any]
    notes: list[str]


def real(name: str) -> Images | None:
    """The images of the bundled data set that `name` means, unless there is a path of that name; else None."""
    data = name.removesuffix(HELD_OUT)
    return real_images(data, held_out=name != data) if data in BUNDLED and not Path(name).exists() else None


def open_reference(reference: str | Path | None, extractor: Extractor) -> Reference:
    """Raises `DyditError` where it is missing, or holds neither moments nor images."""
    if reference is None:
        if extractor.kind not in BUNDLED:
            raise DyditError(f"--features {extractor.kind} needs a --reference: an ADM .npz, or a folder of real images")
        reference = extractor.kind
    bundled = real(str(reference))
    if bundled is not None:
        return Reference(bundled.name, bundled, bundled.sha256)
    path = Path(reference)
    if path.is_dir():
        folder = open_folder(path)
        return Reference(str(path), folder, folder.sha256)
    if not path.is_file():
        raise DyditError(
            f"--reference {reference}: no such file; give an ADM .npz, a folder of images, or {' or '.join(BUNDLED)}"
        )
    pool, spatial = read_gaussians(path)
    names = array_names(path)
    images = open_npz(path) if IMAGES in names else None
    if pool is None and images is None:
        raise DyditError(
            f"{path}: has neither {' and '.join(POOL)} nor {IMAGES} (it has {', '.join(names) or 'nothing'}); "
            "give an ADM reference batch"
        )
    return Reference(str(path), images, partial(sha256, path), pool, spatial)


def standard(reference: Reference, extractor: Extractor, side: int | None, batch: int, on_work: OnWork) -> Standard:
    """Looks at the reference's images, brought to the samples' `side`; stored moments stand before computed ones.

    Raises `DyditError` where stored moments are of other features, or there are fewer than 2 images.
    """
    fitter, notes = Fitter(side, extractor.channels), []
    seen = None
    if reference.images is not None:
        if reference.images.count < 2:
            raise DyditError(f"{reference.name}: {reference.images.count} image; a covariance needs 2 and more")
        seen = look(extractor, reference.images.batches(batch, fitter, on_work))
    if reference.gaussian is not None:
        gaussian, spatial = reference.gaussian, reference.spatial
    elif seen is not None:
        gaussian, spatial = seen.gaussian, seen.spatial
    else:
        raise DyditError(f"{reference.name}: has neither moments nor images; give an ADM reference batch")
    if extractor.kind == "inception" and spatial is None:
        notes.append(f"{reference.name} has no {' and '.join(SPATIAL)}: no sFID")
    if seen is None:
        notes.append(f"{reference.name} has no images ({IMAGES}): no precision and recall")
    facts = {
        "reference": reference.name,
        "reference_moments": "stored" if reference.gaussian is not None else "computed",
        "reference_images": reference.images.count if reference.images is not None else None,
        "reference_sha256": reference.digest(),
        "reference_resize": fitter.resize,
    }
    return Standard(gaussian, spatial, seen.pool if seen else None, facts, notes)
