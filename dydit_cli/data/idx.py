"""`idx:PATH`: the four IDX files that MNIST was published as, and the sets that took its place since.

The file format: two zero bytes, the values' type (8: unsigned bytes), the number of axes, the length of each as a big-endian
32-bit number, and the values.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from dydit_cli.data.dataset import ImageData
from dydit_cli.data.registry import DataSource, register
from dydit_cli.errors import DyditError

PARTS = {False: "train", True: "t10k"}  # by `held_out`

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"

FILES = tuple(f"{part}-{rest}" for part in PARTS.values() for rest in (IMAGES, LABELS))

LARGEST = 2**30  # bytes of a file's content


def idx_file(folder: Path, name: str) -> Path | None:
    """The file `name` in `folder`, plain or gzipped; None where it has neither."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx(path: Path, sha256: str | None = None) -> Tensor:
    """The values of an IDX file of bytes, plain or gzipped, as uint8.

    `sha256` is the hexadecimal digest of the decompressed content, where that is known. Raises `DyditError` for another
    content, and for a file that is damaged or something else. No more is decompressed than the header promises.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            source = gzip.GzipFile(fileobj=file) if zipped else file
            head = source.read(4)
            axes = head[3] if len(head) == 4 and head[:3] == b"\x00\x00\x08" else 0
            lengths = source.read(4 * axes)
            shape = [int.from_bytes(lengths[i : i + 4], "big") for i in range(0, 4 * axes, 4)]
            size = math.prod(shape)
            if size > LARGEST:
                raise DyditError(f"{path}: holds {size} bytes, more than {LARGEST // 2**20} MiB; give a smaller IDX file")
            values = bytearray(source.read(size + 1))  # one more is a file that goes on
    except (OSError, EOFError, zlib.error) as error:
        raise DyditError(f"{path}: not readable ({getattr(error, 'strerror', None) or error}); fetch it again") from None
    if not axes or not size or len(lengths) != 4 * axes or len(values) != size:
        raise DyditError(f"{path}: not an IDX file of bytes, or cut off; fetch it again")
    digest = hashlib.sha256(head + lengths)
    digest.update(values)
    if sha256 is not None and digest.hexdigest() != sha256:
        raise DyditError(f"{path}: not the published file (its content has another SHA-256); fetch it again")
    return torch.frombuffer(values, dtype=torch.uint8).view(shape)


def load_idx_split(
    name: str,
    folder: Path,
    held_out: bool = False,
    digests: dict[str, str] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> ImageData:
    """Either part of the four files in `folder` as the data set `name`: M 1 S S float32 in [-1, 1].

    `digests` are the SHA-256 of the files' contents by `FILES`, which otherwise go unchecked. Without `class_names` the
    classes are 0 to the largest training label. Raises `DyditError` for files that are missing, damaged, or do not fit.
    """
    paths = {file: idx_file(folder, file) for file in FILES}
    missing = [file for file, path in paths.items() if path is None]
    if missing:
        state = "has no" if folder.is_dir() else "no such folder, so no"
        raise DyditError(f"{folder}: {state} {missing[0]} (plain or .gz); give a folder of the four IDX files")

    def read(part: str, rest: str) -> Tensor:
        file = f"{part}-{rest}"
        return read_idx(paths[file], (digests or {}).get(file))  # type: ignore[arg-type]

    images, labels = (read(PARTS[held_out], rest) for rest in (IMAGES, LABELS))
    if images.dim() != 3 or images.shape[1] != images.shape[2] or labels.shape != images.shape[:1]:
        shapes = " and ".join(str(list(part.shape)) for part in (images, labels))
        raise DyditError(f"{folder}: its images and labels are {shapes}; they must be M x S x S and M")
    classes = len(class_names) if class_names else int(read(PARTS[False], LABELS).max()) + 1
    if int(labels.max()) >= classes:
        raise DyditError(f"{folder}: a label is {int(labels.max())} of {classes} classes; fetch it again")
    return ImageData(name, images.float().div(127.5).sub(1).unsqueeze(1), labels.long(), classes, class_names)


register(
    DataSource(
        "idx",
        lambda path, config: load_idx_split(f"idx:{path}", Path(path)),
        lambda path, config: load_idx_split(f"idx:{path}", Path(path), held_out=True),
        takes_path=True,
    )
)
