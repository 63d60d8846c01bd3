"""Images to look at, in batches: a folder of pictures, or an array in memory. Arrays in files: `npz`; new ones: `drawn`."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dydit_cli.checkpoint.tensors import read_json
from dydit_cli.data.load import BUNDLED
from dydit_cli.data.pictures import SUFFIXES, reason
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.features import Pixels
from dydit_cli.evaluate.fit import Fitter
from dydit_cli.figures.grid import to_pixels

Labels = NDArray[np.int64]
OnWork = Callable[[int], None]

RECORD = "samples.json"  # what `dydit sample` writes beside its images
GRID = "grid.png"
CLASS_IN_NAME = re.compile(r"-class(\d+)$")


class Images(Protocol):
    """A set of images.

    `name` is what the user called it; `count` how many there are; `labels` (count,) the classes that they should be of,
    where that is known; `record` how they were made, where that is known; `per` how much work one of them is.
    """

    @property
    def name(self) -> str: ...

    @property
    def count(self) -> int: ...

    @property
    def per(self) -> int: ...

    @property
    def labels(self) -> Labels | None: ...

    @property
    def record(self) -> dict[str, Any]: ...

    def batches(self, size: int, fitter: Fitter, on_work: OnWork) -> Iterator[Pixels]:
        """All of them in their order, `size` at once, as `fitter` makes them; `on_work` hears of `count` times `per` in
        all. Raises `DyditError` for a damaged one."""

    def sha256(self) -> str:
        """Of what they are read from, in hexadecimal."""


@dataclass(frozen=True)
class ArrayImages:
    """pixels: M S S C uint8, held in memory."""

    name: str
    pixels: Pixels
    labels: Labels | None = None
    record: dict[str, Any] = field(default_factory=dict)
    per: int = 1

    @property
    def count(self) -> int:
        return len(self.pixels)

    def batches(self, size: int, fitter: Fitter, on_work: OnWork) -> Iterator[Pixels]:
        for start in range(0, self.count, size):
            pixels = self.pixels[start : start + size]
            yield fitter(pixels)
            on_work(len(pixels))

    def sha256(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.pixels).data).hexdigest()


@dataclass(frozen=True)
class FolderImages:
    """The pictures anywhere below `folder`, in the order of their paths."""

    name: str
    folder: Path
    files: list[Path]
    labels: Labels | None
    record: dict[str, Any]
    per: int = 1

    @property
    def count(self) -> int:
        return len(self.files)

    def batches(self, size: int, fitter: Fitter, on_work: OnWork) -> Iterator[Pixels]:
        for start in range(0, self.count, size):
            files = self.files[start : start + size]
            # one by one: they need not be of one size before the fitter had them
            yield np.concatenate([self._read(file, fitter) for file in files])
            on_work(len(files))

    def _read(self, file: Path, fitter: Fitter) -> Pixels:
        try:
            return fitter(read_pixels(file)[None])
        except ValueError as error:
            raise DyditError(f"{file}: {error}; crop it, or take it away") from None

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for file in self.files:
            name = file.relative_to(self.folder).as_posix().encode()
            digest.update(len(name).to_bytes(8, "little") + name + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()


def real_images(name: str, held_out: bool = False) -> ArrayImages:
    """The images of the bundled data set `name`: those that everything is trained on, or those that nothing is."""
    data = BUNDLED[name](held_out)
    return ArrayImages(f"{name}:held-out" if held_out else name, to_pixels(data.images.numpy()), data.labels.numpy())


def open_folder(folder: Path) -> FolderImages:
    """Lists the pictures; grid.png of a folder of samples is none. Raises `DyditError` where there is none."""
    record = read_record(folder)
    files = sorted(
        Path(place) / name
        for place, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    )
    files = [file for file in files if not (record and file == folder / GRID)]
    if not files:
        raise DyditError(f"{folder}: no images in it ({' '.join(sorted(SUFFIXES))}); give a folder of pictures")
    found = [CLASS_IN_NAME.search(file.stem) for file in files]
    labels = np.array([int(one.group(1)) for one in found if one], dtype=np.int64)
    return FolderImages(str(folder), folder, files, labels if all(found) else None, record)


def read_pixels(file: Path) -> Pixels:
    """One picture, H W 1 where it is grey and else H W 3; raises `DyditError` where it cannot be read."""
    try:
        with Image.open(file) as image:
            grey = image.mode in ("1", "L", "LA")
            return np.asarray(image.convert("L"))[..., None] if grey else np.asarray(image.convert("RGB"))
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        raise DyditError(f"{file}: not readable as an image ({reason(error)}); replace it, or take it away") from None


def read_record(folder: Path) -> dict[str, Any]:
    """What samples.json in `folder` says, {} where there is none; raises `DyditError` where it is damaged."""
    if not (folder / RECORD).is_file():
        return {}
    record = read_json(folder / RECORD)
    if not isinstance(record, dict):
        raise DyditError(f"{folder / RECORD}: not what dydit sample writes; remove it")
    return record


def labels_in_turn(record: dict[str, Any], count: int) -> Labels | None:
    """The classes of `count` images that a record's `classes` were drawn for in turn, where it names them."""
    classes = record.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(c, int) for c in classes):
        return None
    return np.resize(np.array(classes, dtype=np.int64), count)
