"""`imagefolder:PATH`: a folder of pictures, read when they are needed by a few threads, one batch ahead."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dydit_cli.data.dataset import Skipped, check_fits
from dydit_cli.data.registry import DataSource, register
from dydit_cli.errors import DyditError
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.latent_norm import LatentNorm

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

LONGEST = 100  # times as long as wide: resizing a longer one could fill the memory

NAMED = 5  # of what was skipped

THREADS = min(8, os.cpu_count() or 1)  # decoding releases Python's lock

PIXEL_CHANNELS = (1, 3)

Picture = tuple[NDArray[np.uint8], int]  # S S C, and its label


@dataclass(frozen=True)
class Listing:
    """Pictures by class: every folder in `root` is one, in the order of their names; `files` are paths below `root`."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]

    def path(self, i: int) -> Path:
        return self.root / self.files[i]


def list_pictures(root: str | Path) -> Listing:
    """Lists the pictures by their names alone, sorted, without hidden ones.

    Raises `DyditError` where `root` is no folder or has no class folder with a picture.
    """
    root = Path(root)
    if not root.is_dir():
        raise DyditError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}; give a folder of class folders")
    classes = sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    files = [(file, label) for label, name in enumerate(classes) for file in sorted(pictures_below(root, name))]
    if not files:
        suffixes = " ".join(sorted(SUFFIXES))
        raise DyditError(f"{root}: no images in it; put those of each class into a folder of its own ({suffixes})")
    return Listing(root, tuple(classes), tuple(file for file, _ in files), tuple(label for _, label in files))


def list_clips(root: str | Path, frames: int) -> tuple[Listing, list[tuple[str, ...]], list[Skipped]]:
    """The clips in the class folders of `root`, which are folders of pictures, and each one's frames: paths below `root`,
    sorted by name. A clip of under `frames` frames is not in the list, but among what is skipped.

    Raises `DyditError` as `list_pictures` does, and where no clip is long enough.
    """
    pictures = list_pictures(root)
    clips: dict[str, list[str]] = {}
    labels = dict(zip((file.rpartition("/")[0] for file in pictures.files), pictures.labels, strict=True))
    for file in pictures.files:
        clips.setdefault(file.rpartition("/")[0], []).append(file)
    skipped = [Skipped(clip, f"{len(own)} frames") for clip, own in clips.items() if len(own) < frames]
    long = {clip: tuple(own) for clip, own in clips.items() if len(own) >= frames}
    if not long:
        raise DyditError(
            f"{root}: none of its {len(clips)} folders of frames has {frames} or more, for instance {skipped[0].file} "
            f"({skipped[0].reason}); give a folder of class folders of such folders, or a smaller --frames"
        )
    return replace(pictures, files=tuple(long), labels=tuple(labels[clip] for clip in long)), list(long.values()), skipped


def pictures_below(root: Path, name: str = ".", follow_links: bool = True) -> Iterator[str]:
    """Paths below `root` of all files in its folder `name` that have a picture's suffix; hidden ones are left out."""
    for folder, _, names in os.walk(root / name, followlinks=follow_links):
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        yield from (f"{inside}/{n}" for n in names if Path(n).suffix.lower() in SUFFIXES and not n.startswith("."))


def open_picture(path: Path) -> Image.Image:
    """The file of a picture, its pixels still unread; raises whatever Pillow does for a damaged one."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for its writer for good
        raise ValueError("not a regular file")
    return Image.open(path)


def header_fault(path: Path) -> str | None:
    """Why `path` is no picture, by its first bytes alone; None where it seems to be one."""
    try:
        with open_picture(path):
            return None
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        return reason(error)


def read_picture(path: Path, size: int, channels: int = 3) -> NDArray[np.uint8]:
    """The picture as size x size x channels (3 colours, or 1 of grey); raises whatever Pillow does for a damaged file."""
    with open_picture(path) as image:
        # a palette may say which colour is transparent in a way that only RGBA can take
        colours = image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB")
    square = centre_crop(colours, size)
    return np.asarray(square if channels == 3 else square.convert("L")).reshape(size, size, channels)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle square, as ADM and DiT cut it: halved by averaging while it stays large enough, bicubic from there to
    a short side of `size`, and what is over on the long side left out evenly."""
    if max(image.size) > LONGEST * min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels, too long for a square")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = size / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def reason(error: Exception) -> str:
    """Pillow's complaint in a few words, without the path."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    text: Any = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:100]


def describe_skipped(skipped: Sequence[Skipped]) -> str:
    """`2 unreadable images skipped: a/1.png (not an image), a/2.png (...)`, at most 5 of them named; "" for none."""
    if not skipped:
        return ""
    named = ", ".join(f"{one.file} ({one.reason})" for one in skipped[:NAMED])
    more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    return f"{len(skipped)} unreadable image{'s' if len(skipped) > 1 else ''} skipped: {named}{more}"


def none_readable(root: Path, skipped: Sequence[Skipped]) -> DyditError:
    """For a folder of which nothing is left."""
    first = skipped[0]
    return DyditError(
        f"{root}: none of its {len(skipped)} images can be read, for instance {first.file} ({first.reason}); "
        "give a folder of class folders with pictures"
    )


class ImageFolder:
    """Class folders of pictures, cropped to `size` x `size`, mirrored at random; of `channels` 3, or 1 for grey.

    Opening reads every file's first bytes. A picture that proves damaged later is replaced by the next readable one and its
    label, so that what `take` returns at an index never depends on threads.
    """

    varied = True
    latents = None

    def __init__(self, root: str | Path, size: int, channels: int = 3, threads: int = THREADS) -> None:
        self.name, self.size, self.channels = f"imagefolder:{root}", size, channels
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="dydit-pictures")
        self._ahead: dict[int, Future[Picture]] = {}
        listing = list_pictures(root)
        self.class_names, self.num_classes = listing.classes, len(listing.classes)
        faults = list(self._pool.map(header_fault, map(listing.path, range(len(listing.files)))))
        pairs = zip(listing.files, faults, strict=True)
        self._skipped = {file: Skipped(file, fault) for file, fault in pairs if fault is not None}
        if len(self._skipped) == len(listing.files):
            raise none_readable(listing.root, self.skipped)
        readable = [i for i, fault in enumerate(faults) if fault is None]
        files, labels = listing.files, listing.labels
        self._listing = replace(listing, files=tuple(files[i] for i in readable), labels=tuple(labels[i] for i in readable))

    @property
    def skipped(self) -> Sequence[Skipped]:
        return [self._skipped[file] for file in sorted(self._skipped)]

    def __len__(self) -> int:
        return len(self._listing.files)

    def check(self, config: ModelConfig, latents: LatentNorm | None = None) -> None:
        check_pixels(self.name, config)
        check_fits(self.name, config, self.channels, self.size, self.num_classes)

    def take(self, index: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        indices: list[int] = index.tolist()
        futures = [self._ahead.pop(i) if i in self._ahead else self._pool.submit(self._read, i) for i in indices]
        pictures = [future.result() for future in futures]
        images = to_model(np.stack([pixels for pixels, _ in pictures]))
        if seed is not None:
            images = torch.where((seed % 2 == 1)[:, None, None, None], images.flip(-1), images)
        return images, torch.tensor([label for _, label in pictures])

    def prefetch(self, index: Tensor) -> None:
        indices = index.tolist()
        for i in set(self._ahead) - set(indices):  # prefetched, and never taken
            self._ahead.pop(i).cancel()
        for i in indices:
            if i not in self._ahead:
                self._ahead[i] = self._pool.submit(self._read, i)

    def _read(self, first: int) -> Picture:
        for step in range(len(self)):
            i = (first + step) % len(self)
            try:
                return read_picture(self._listing.path(i), self.size, self.channels), self._listing.labels[i]
            except Exception as error:  # damaged files make Pillow's readers raise nearly anything
                file = self._listing.files[i]
                self._skipped[file] = Skipped(file, reason(error))
        raise none_readable(self._listing.root, self.skipped)


def check_pixels(name: str, config: ModelConfig) -> None:
    """Raises `DyditError` for a model of latents, which cannot be trained on pixels."""
    if config.in_channels not in PIXEL_CHANNELS:
        raise DyditError(
            f"data set {name} is pixels and the model takes latents of {config.in_channels} channels; "
            "write them once with dydit encode IMAGES OUT --vae PATH and give latents:OUT"
        )


def to_model(pixels: NDArray[np.uint8]) -> Tensor:
    """B S S C from 0..255 -> B C S S float32 in [-1, 1]."""
    # a copy has the usual strides where C is 1, too, on which a convolution's last bits depend
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).float().div(127.5).sub(1)


def _load(path: str, config: ModelConfig | None) -> ImageFolder:
    name = f"imagefolder:{path}"
    if config is None:
        raise DyditError(f"data set {name} is cropped to its model's size, and there is no model; give the folder alone")
    check_pixels(name, config)
    return ImageFolder(path, config.input_size, config.in_channels)


register(DataSource("imagefolder", _load, takes_path=True))
