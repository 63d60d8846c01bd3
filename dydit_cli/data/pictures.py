"""Picture files: finding them by class, reading one as a square, and saying which could not be read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dydit_cli.errors import DyditError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
LONGEST = 100  # times as long as wide: resizing a longer one could fill the memory
NAMED = 5  # of what was skipped


@dataclass(frozen=True)
class Skipped:
    """A file that could not be read: its path below the root, and why."""

    file: str
    reason: str


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
    """Lists the pictures by their names alone, sorted, hidden ones left out.

    Raises `DyditError` where `root` is no folder or has no class folder with a picture.
    """
    root = Path(root)
    if not root.is_dir():
        raise DyditError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}; give a folder of class folders")
    classes = sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    found = [(file, label) for label, name in enumerate(classes) for file in _files(root, name)]
    if not found:
        suffixes = " ".join(sorted(SUFFIXES))
        raise DyditError(f"{root}: no images in it; put those of each class into a folder of its own ({suffixes})")
    return Listing(root, tuple(classes), tuple(file for file, _ in found), tuple(label for _, label in found))


def _files(root: Path, name: str) -> list[str]:
    """The pictures anywhere below one class's folder."""
    files: list[str] = []
    for folder, _, names in os.walk(root / name, followlinks=True):
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        files.extend(f"{inside}/{n}" for n in names if Path(n).suffix.lower() in SUFFIXES and not n.startswith("."))
    return sorted(files)


def header_fault(path: Path) -> str | None:
    """Why `path` is no picture, going by its first bytes alone; None where it seems to be one."""
    try:
        with Image.open(path):
            return None
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        return reason(error)


def read_picture(path: Path, size: int, channels: int = 3) -> NDArray[np.uint8]:
    """The picture as size x size x channels (3 colours, or 1 of grey); raises whatever Pillow does for a damaged file."""
    with Image.open(path) as image:
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
