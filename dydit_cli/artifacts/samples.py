"""What `dydit sample` leaves: pictures or one array, and how they were drawn."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dydit_cli.artifacts.study import TABLE_FILE
from dydit_cli.errors import DyditError
from dydit_cli.files import atomic_file

RECORD_FILE, ARRAY_FILE = "samples.json", "samples.npz"

ARRAY = "arr_0"
SHOWN = 10  # pictures of a folder that a figure sets side by side

NAME = re.compile(r"\d+-class(\d+)\.png")


def read_record(folder: Path) -> dict[str, Any]:
    """samples.json; raises `DyditError` where it is missing, or does not say how the images were drawn."""
    file = folder / RECORD_FILE
    if not file.is_file():
        raise DyditError(
            f"{folder}: has no samples to show: neither a {TABLE_FILE} of dydit study nor a {RECORD_FILE} of dydit sample"
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        missing = [name for name in ("sampler", "steps", "cfg", "seed") if name not in record]
        if missing:
            raise ValueError(f"it has no {missing[0]!r}")
    except (OSError, ValueError, TypeError) as error:
        raise DyditError(f"{file}: not readable as what dydit sample writes ({error}); sample again") from None
    return dict(record)


def read_pixels(folder: Path) -> NDArray[np.uint8]:
    """The first images of a folder of `dydit sample`, single PNGs or an array: M S S C."""
    if (folder / ARRAY_FILE).is_file():
        return next(pixels for name, pixels in read_arrays(folder / ARRAY_FILE) if name == ARRAY)
    files = sorted(file for file in folder.iterdir() if NAME.fullmatch(file.name))[:SHOWN]
    if not files:
        raise DyditError(f"{folder}: holds no images of dydit sample (00000-class0.png, ...); sample again")
    pictures = []
    for file in files:
        try:
            with Image.open(file) as picture:
                pixels = np.asarray(picture.convert("L" if picture.mode == "L" else "RGB"))
        except OSError as error:
            raise DyditError(f"{file}: not readable as a picture ({error}); sample again") from None
        pictures.append(pixels.reshape(*pixels.shape[:2], -1))
    return np.stack(pictures)


def read_arrays(file: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Each array of an .npz and its name; raises `DyditError` where one is no uint8 images M S S C."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            for name in arrays.files:
                pixels = arrays[name]
                if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
                    raise ValueError(f"{name} is {pixels.dtype} of shape {pixels.shape}")
                yield name, pixels
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DyditError(f"{file}: not readable as samples ({error})") from None


def write_npz(path: str | Path, shape: tuple[int, ...], parts: Iterable[NDArray[np.uint8]]) -> None:
    """Writes the array of `shape` that the `parts` make end to end, holding one part at a time, atomically.

    The same pixels are the same bytes: numpy's own writer puts the time into the file.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    entry = zipfile.ZipInfo(f"{ARRAY}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    with (
        atomic_file(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open(entry, "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part).data)


def read_npz(path: Path) -> NDArray[np.uint8]:
    """The array of a file that `write_npz` wrote; raises `DyditError` where it is none."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            array = arrays[ARRAY]
        if array.dtype != np.uint8 or array.ndim != 4:
            raise ValueError(f"{ARRAY} is {array.dtype} of {array.ndim} dimensions")
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DyditError(f"{path}: damaged shard ({error}); delete it and run the same command again") from None
    return array


def rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """M S S C -> M S S 3; grey is repeated."""
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
