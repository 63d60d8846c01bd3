"""Fashion-MNIST (Xiao et al., arXiv 1708.07747): 70,000 grey pictures of clothes, 28 x 28, ten classes, MIT licence.

Read from its four IDX files, as published or as Debian's package `dataset-fashion-mnist` holds them. The files' content
is checked: packing it again changes a file's digest and not the pictures.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from dydit_cli.data.dataset import ImageData
from dydit_cli.errors import DyditError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

PARTS = {False: "train", True: "t10k"}  # by `held_out`

# the SHA-256 of each file's decompressed content
CONTENTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

BIGGEST = 64 * 2**20  # bytes of a file's content: the largest of the four has 47 MB


@lru_cache(maxsize=2)
def load_fashion_split(held_out: bool = False) -> ImageData:
    """60,000 pictures to train on, or the 10,000 that are held out: M 1 28 28 float32 in [-1, 1].

    They are looked for in `$DYDIT_DATA` and its folder `fashion-mnist`, then where Debian's package puts them. Raises
    `DyditError` where they are nowhere, or are other pictures than the published ones.
    """
    folder = fashion_folder()
    images, labels = (_checked(folder, f"{PARTS[held_out]}-{rest}") for rest in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    return ImageData("fashion", _to_model(images), labels.long(), len(CLASSES))


def fashion_folder() -> Path:
    """The folder that has the four files."""
    given = os.environ.get("DYDIT_DATA")
    for folder in (*((Path(given), Path(given) / "fashion-mnist") if given else ()), DEBIAN):
        if all(_file(folder, name) is not None for name in CONTENTS):
            return folder
    raise DyditError(
        "data set fashion: its four IDX files are not there; apt-get install dataset-fashion-mnist, or set DYDIT_DATA to a "
        "folder that has them"
    )


def read_idx(path: Path) -> Tensor:
    """An IDX file of bytes, plain or gzipped, as uint8. Raises `DyditError` for anything else."""
    return _parse(_content(path), path)


def _file(folder: Path, name: str) -> Path | None:
    """`name` in `folder`, plain or gzipped."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _checked(folder: Path, name: str) -> Tensor:
    path = _file(folder, name)
    assert path is not None  # fashion_folder looked
    content = _content(path)
    if hashlib.sha256(content).hexdigest() != CONTENTS[name]:
        raise DyditError(f"{path}: not the published file of Fashion-MNIST (its content has another SHA-256); fetch it again")
    return _parse(content, path)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            content = gzip.GzipFile(fileobj=file).read(BIGGEST + 1) if zipped else file.read(BIGGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DyditError(f"{path}: not readable ({getattr(error, 'strerror', None) or error})") from None
    if len(content) > BIGGEST:
        raise DyditError(f"{path}: holds more than {BIGGEST // 2**20} MiB; give an IDX file")
    return content


def _parse(content: bytes, path: Path) -> Tensor:
    # two zero bytes, the type (8: unsigned bytes), the number of axes; the length of each, big-endian; the values
    axes = content[3] if len(content) >= 4 and content[:3] == b"\x00\x00\x08" else 0
    shape = [int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(1, axes + 1)]
    if not axes or len(content) != 4 + 4 * axes + math.prod(shape):
        raise DyditError(f"{path}: not an IDX file of bytes, or cut off; fetch it again")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * axes).view(shape)


def _to_model(images: Tensor) -> Tensor:
    """M S S from 0..255 -> M 1 S S float32 in [-1, 1]."""
    return images.float().div(127.5).sub(1).unsqueeze(1)
