"""Sets of images in batches: an array in memory, a folder, samples of a checkpoint; arrays in files are in `reference`."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dydit_cli.artifacts.samples import GRID_FILE, RECORD_FILE
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.data.dataset import ImageData
from dydit_cli.data.imagefolder import SUFFIXES, centre_crop, open_picture, pictures_below, reason
from dydit_cli.data.load import load_data, load_held_out
from dydit_cli.data.registry import SOURCES
from dydit_cli.devices import world_size
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.features import Pixels
from dydit_cli.files import read_json, sha256
from dydit_cli.pixels import to_pixels
from dydit_cli.sampling.options import SamplingConfig
from dydit_cli.sampling.sampler import open_sampler, record_of

RESIZED = "centre crop, halved by averaging, then Pillow bicubic (as ADM)"

UNDONE = "enlarged squares of dydit sample's PNGs taken back exactly"


class Preprocessor:
    """Images to `side` pixels a side and `channels` colours (1 of grey, or 3); `steps` is what was done to any of them.

    Without a `side` it is the first image's shorter one.
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
        smallest = smallest_shown(image)
        if smallest is not image:
            self.steps.add(UNDONE)
            return self._resized(smallest, side)
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


def smallest_shown(image: Pixels) -> Pixels:
    """The smallest image whose pixels the square `image` shows as equal squares; itself where there is none.

    So samples in pictures that were enlarged, and the same ones in an array, are resized from the same pixels.
    """
    if image.shape[0] != image.shape[1] or len(image) < 2 or not np.array_equal(image[0], image[1]):
        return image
    for side in range(1, image.shape[0]):
        shrunken = without_enlargement(image, side)
        if shrunken is not None:
            return shrunken
    return image


Labels = NDArray[np.int64]

OnWork = Callable[[int], None]

CLASS_IN_NAME = re.compile(r"-class(\d+)$")


class Images(ABC):
    """A set of images.

    `name` is the user's; `count` how many there are; `labels` (count,) the classes that they should be of, where that is
    known; `record` how they were made, {} where that is not known; `per` how much work one of them is.
    """

    per = 1

    def __init__(self, name: str, count: int, labels: Labels | None = None, record: dict[str, Any] | None = None) -> None:
        self.name, self.count, self.labels, self.record = name, count, labels, record or {}

    @abstractmethod
    def batches(self, size: int, preprocess: Preprocessor, on_work: OnWork) -> Iterator[Pixels]:
        """All of them in their order, `size` at once, as `preprocess` returns them; what `on_work` is called with adds up to
        `count` times `per`. Raises `DyditError` for a damaged one."""

    @abstractmethod
    def sha256(self) -> str:
        """Of what they are read from, in hexadecimal."""


class ArrayImages(Images):
    """pixels: M S S C uint8, held in memory."""

    def __init__(self, name: str, pixels: Pixels, labels: Labels | None = None, record: dict[str, Any] | None = None) -> None:
        super().__init__(name, len(pixels), labels, record)
        self.pixels = pixels

    def first(self, count: int) -> ArrayImages:
        """The first ones alone; raises `DyditError` where there are fewer."""
        if count > self.count:
            raise DyditError(f"{self.name} has {self.count:,} images, and --num asks for {count:,}")
        labels = None if self.labels is None else self.labels[:count]
        return ArrayImages(self.name, self.pixels[:count], labels, self.record)

    def batches(self, size: int, preprocess: Preprocessor, on_work: OnWork) -> Iterator[Pixels]:
        for start in range(0, self.count, size):
            pixels = self.pixels[start : start + size]
            yield preprocess(pixels)
            on_work(len(pixels))

    def sha256(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.pixels).data).hexdigest()


class FolderImages(Images):
    """The pictures anywhere below `folder`, in the order of their paths; grid.png of a folder of samples is none.

    Raises `DyditError` where there is none.
    """

    def __init__(self, folder: Path) -> None:
        record = read_record(folder)
        check_images(folder, record.get("frames"))
        files = sorted(folder / name for name in pictures_below(folder, follow_links=False))
        self.folder, self.files = folder, [file for file in files if not (record and file == folder / GRID_FILE)]
        if not self.files:
            raise DyditError(f"{folder}: no images in it ({' '.join(sorted(SUFFIXES))}); give a folder of pictures")
        classes = [CLASS_IN_NAME.search(file.stem) for file in self.files]
        labels = np.array([int(one.group(1)) for one in classes if one], dtype=np.int64)
        super().__init__(str(folder), len(self.files), labels if all(classes) else None, record)

    def batches(self, size: int, preprocess: Preprocessor, on_work: OnWork) -> Iterator[Pixels]:
        for start in range(0, self.count, size):
            files = self.files[start : start + size]
            # one by one: they may differ in size before
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


HELD_OUT = ":held-out"  # behind a data set's name


def real_images(name: str, held_out: bool = False) -> ArrayImages:
    """The images of the data set `name`: those that models are trained on, or those that nothing is.

    Raises `DyditError` for a data set without a held-out part, or whose images are not all in memory.
    """
    data = load_held_out(name) if held_out else load_data(name)
    if data is None:
        raise DyditError(f"data set {name} has no held-out part; leave {HELD_OUT} out")
    if not isinstance(data, ImageData):
        raise DyditError(f"data set {name} is no set of small images; give a folder of images, or an .npz")
    return ArrayImages(f"{name}{HELD_OUT}" if held_out else name, to_pixels(data.images.numpy()), data.labels.numpy())


def named_images(name: str) -> ArrayImages | None:
    """The images of the data set that `name` means, as `digits` or `digits:held-out`; None for a path, or no data set."""
    data = name.removesuffix(HELD_OUT)
    known = data.partition(":")[0] in SOURCES and not Path(name).exists()
    return real_images(data, held_out=name != data) if known else None


def read_pixels(file: Path) -> Pixels:
    """One picture, H W 1 where it is grey and else H W 3; raises `DyditError` where it cannot be read."""
    try:
        with open_picture(file) as image:
            grey = image.mode in ("1", "L", "LA")
            return np.asarray(image.convert("L"))[..., None] if grey else np.asarray(image.convert("RGB"))
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        raise DyditError(f"{file}: not readable as an image ({reason(error)}); replace it, or take it away") from None


def read_record(folder: Path) -> dict[str, Any]:
    """The content of samples.json in `folder`, {} where there is none; raises `DyditError` where it is damaged."""
    path = folder / RECORD_FILE
    record = read_json(path) if path.is_file() else {}
    if not isinstance(record, dict):
        raise DyditError(f"{path}: not what dydit sample writes; remove it")
    return record


def check_images(name: object, frames: int | None) -> None:
    """Raises `DyditError` for samples that are videos, of which no network here knows features."""
    if frames is not None:
        raise DyditError(f"{name}: videos of {frames} frames; the distances here are of images, so measure FVD elsewhere")


def labels_in_turn(record: dict[str, Any], count: int) -> Labels | None:
    """The classes of `count` images, a record's `classes` in turn; None where it has none."""
    classes = record.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(c, int) for c in classes):
        return None
    return np.resize(np.array(classes, dtype=np.int64), count)


class GeneratedImages(Images):
    """`count` images of a checkpoint: the same ones as `dydit sample` writes for the same settings."""

    def __init__(self, loaded: Checkpoint, config: SamplingConfig, count: int) -> None:
        if world_size() > 1:
            raise DyditError(
                f"WORLD_SIZE={world_size()}: several processes share the sampling only in dydit sample --npz; "
                "sample so, and evaluate its folder"
            )
        check_images(loaded.path, loaded.config.frames)
        self.per, self._sampler = config.settings.for_model(loaded.config).work, open_sampler(loaded, config)
        digest = None if loaded.file is None else sha256(loaded.file)
        record = {**record_of(loaded, config, count), "checkpoint_sha256": digest}
        super().__init__(str(loaded.path), count, self._sampler.labels(0, count).numpy(), record)

    def batches(self, size: int, preprocess: Preprocessor, on_work: OnWork) -> Iterator[Pixels]:
        """As many at once as are sampled at once, whatever `size` is."""
        batch = self._sampler.config.batch
        for first in range(0, self.count, batch):
            samples = self._sampler.samples(first, min(batch, self.count - first), on_work)
            yield preprocess(self._sampler.pixels(samples))

    def sha256(self) -> str:
        """Of what the images depend on: there is no file of them."""
        return hashlib.sha256(repr(self.record).encode()).hexdigest()
