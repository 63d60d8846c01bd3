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

from dydit_cli.artifacts.samples import GRID_FILE, RECORD_FILE
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.data.imagefolder import SUFFIXES, centre_crop, reason
from dydit_cli.data.load import BUNDLED
from dydit_cli.devices import pick_device, world_size
from dydit_cli.diffusion.generate import Progress
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.features import Pixels
from dydit_cli.files import read_json, sha256
from dydit_cli.pixels import to_pixels
from dydit_cli.sampling.sampler import SamplingConfig, open_sampler, protocol

RESIZED = "centre crop, halved by averaging, then Pillow bicubic (as ADM)"

UNDONE = "enlarged squares of dydit sample's PNGs taken back exactly"


class Preprocessor:
    """Images to `side` pixels a side and `channels` colours (1 of grey, or 3); `steps` is what was done to any of them.

    Without a `side` the first image's shorter one is everyone's.
    """

    def __init__(self, side: int | None, channels: int) -> None:
        self.side, self.channels = side, channels
        self.steps: set[str] = set()

    @property
    def resize(self) -> str:
        """For the protocol: `none` where every image had the size."""
        return "; ".join(sorted(self.steps)) or "none"

    def __call__(self, pixels: Pixels) -> Pixels:
        """M H W C, C of 1 or 3, to M side side channels."""
        if self.side is None:
            self.side = min(pixels.shape[1:3])
        if pixels.shape[1:3] != (self.side, self.side):
            pixels = np.stack([self._resized(image, self.side) for image in pixels])
        return self._coloured(pixels)

    def _resized(self, image: Pixels, side: int) -> Pixels:
        shrunken = without_enlargement(image, side)
        if shrunken is not None:
            self.steps.add(UNDONE)
            return shrunken
        self.steps.add(RESIZED)
        grey = image.shape[-1] == 1
        square = centre_crop(Image.fromarray(image[..., 0] if grey else image), side)
        return np.asarray(square).reshape(side, side, image.shape[-1])

    def _coloured(self, pixels: Pixels) -> Pixels:
        if pixels.shape[-1] == self.channels:
            return pixels
        if self.channels == 3:
            return np.repeat(pixels, 3, axis=-1)
        # ITU-R 601 as in Pillow; the weights sum to 2^16, so that repeated grey comes back exactly
        weighted = pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], dtype=np.uint32)
        grey: Pixels = ((weighted + (1 << 15)) >> 16).astype(np.uint8)[..., None]
        return grey


def without_enlargement(image: Pixels, side: int) -> Pixels | None:
    """The image S S C whose pixels `image` shows as equal squares, as `dydit sample` writes small ones; else None."""
    height, width, _ = image.shape
    times = height // side
    if height != width or times < 2 or height != times * side:
        return None
    small = image[::times, ::times]
    enlarged = small.repeat(times, axis=0).repeat(times, axis=1)
    return small if np.array_equal(enlarged, image) else None


Labels = NDArray[np.int64]

OnWork = Callable[[int], None]

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

    def batches(self, size: int, preprocess: Preprocessor, on_work: OnWork) -> Iterator[Pixels]:
        """All of them in their order, `size` at once, as `preprocess` makes them; `on_work` hears of `count` times `per` in
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

    def batches(self, size: int, preprocess: Preprocessor, on_work: OnWork) -> Iterator[Pixels]:
        for start in range(0, self.count, size):
            pixels = self.pixels[start : start + size]
            yield preprocess(pixels)
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

    def batches(self, size: int, preprocess: Preprocessor, on_work: OnWork) -> Iterator[Pixels]:
        for start in range(0, self.count, size):
            files = self.files[start : start + size]
            # one by one: they need not be of one size before the preprocess had them
            yield np.concatenate([self._read(file, preprocess) for file in files])
            on_work(len(files))

    def _read(self, file: Path, preprocess: Preprocessor) -> Pixels:
        try:
            return preprocess(read_pixels(file)[None])
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
    files = [file for file in files if not (record and file == folder / GRID_FILE)]
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
    if not (folder / RECORD_FILE).is_file():
        return {}
    record = read_json(folder / RECORD_FILE)
    if not isinstance(record, dict):
        raise DyditError(f"{folder / RECORD_FILE}: not what dydit sample writes; remove it")
    return record


def labels_in_turn(record: dict[str, Any], count: int) -> Labels | None:
    """The classes of `count` images that a record's `classes` were drawn for in turn, where it names them."""
    classes = record.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(c, int) for c in classes):
        return None
    return np.resize(np.array(classes, dtype=np.int64), count)


class GeneratedImages:
    """`count` images of a checkpoint: the same ones as `dydit sample` writes for the same settings."""

    def __init__(self, loaded: Checkpoint, how: SamplingConfig, count: int) -> None:
        if world_size() > 1:
            raise DyditError(
                f"WORLD_SIZE={world_size()}: several processes share the sampling only in dydit sample --npz; "
                "sample so, and evaluate its folder"
            )
        self.name, self.count, self.per = str(loaded.path), count, how.settings.steps
        self._painter = open_sampler(loaded, how)
        self.labels: Labels | None = self._painter.labels(0, count).numpy()
        self.record: dict[str, Any] = {
            "images": count,
            **protocol(loaded, how),
            "checkpoint_sha256": None if loaded.file is None else sha256(loaded.file),
            "device": pick_device(how.device).type,
        }

    def batches(self, size: int, preprocess: Preprocessor, on_work: OnWork) -> Iterator[Pixels]:
        """As many at once as are drawn at once, whatever `size` says."""
        batch = self._painter.how.batch

        def report(progress: Progress) -> None:
            on_work(progress.batch)

        for first in range(0, self.count, batch):
            samples = self._painter.samples(first, min(batch, self.count - first), report)
            yield preprocess(self._painter.pixels(samples))

    def sha256(self) -> str:
        """Of what the images depend on: there is no file of them."""
        return hashlib.sha256(repr(self.record).encode()).hexdigest()
