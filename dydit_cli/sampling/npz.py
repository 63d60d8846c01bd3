"""The array file of ADM's evaluation suite: `arr_0`, uint8, N S S 3, stored uncompressed."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dydit_cli.errors import DyditError
from dydit_cli.files import atomic_file

ARRAY = "arr_0"


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
