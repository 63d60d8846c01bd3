"""What `dydit sample` leaves: pictures or one array, and how they were drawn."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dydit_cli import marks
from dydit_cli.artifacts.base import Artifact, read_object
from dydit_cli.diffusion.options import SOLVED as SOLVED
from dydit_cli.errors import DyditError
from dydit_cli.files import atomic_file
from dydit_cli.model.caching import CACHE_FIELDS as CACHE_FIELDS
from dydit_cli.pixels import strip

RECORD_FILE, ARRAY_FILE, GRID_FILE = marks.SAMPLES, "samples.npz", "grid.png"

SHARDS = "shards"  # the folder of an array that is not whole yet

ARRAY_FORMAT = "dydit-npz"  # of the record of one array; pictures have none

ARRAY = "arr_0"

NAME = re.compile(r"\d+-class\d+\.png")

Pixels = NDArray[np.uint8]


def picture_name(index: int, label: int) -> str:
    """`00003-class7.png`."""
    return f"{index:05d}-class{label}.png"


@dataclass(frozen=True)
class SampleFolder(Artifact):
    """`record` is samples.json. The images themselves are read as they are wanted."""

    kind = "samples"
    name = "samples"
    made_by = "dydit sample CKPT --out DIR"
    mark = RECORD_FILE

    folder: Path
    record: dict[str, Any]

    @property
    def images(self) -> int:
        """How many were asked for."""
        return int(self.record["images"]) if "images" in self.record else len(self._pictures())

    @property
    def finished(self) -> bool:
        """Whether all are there; pictures appear at once, an array shard by shard."""
        return self.record.get("format") != ARRAY_FORMAT or (self.folder / ARRAY_FILE).is_file()

    @property
    def drawn(self) -> int:
        """How many are there."""
        if self.finished:
            return self.images
        size = int(self.record["shard_size"])
        return sum(min(size, self.images - size * int(shard.stem)) for shard in self._shards())

    def label(self, index: int) -> int | None:
        """The class of an image, None where it is not recorded."""
        classes = self.record.get("classes")
        return int(classes[index % len(classes)]) if isinstance(classes, list) and classes else None

    def first(self, count: int) -> list[Pixels]:
        """The first images that are there, `count` at most: each S S C; of a video the row of its frames."""
        if (self.folder / ARRAY_FILE).is_file():
            return shown(read_first(self.folder / ARRAY_FILE, count))
        shards = self._shards() if not self.finished else []
        if shards:
            return shown(read_first(shards[0], count)) if int(shards[0].stem) == 0 else []
        return [read_picture(file) for file in self._pictures()[:count]]

    def _pictures(self) -> list[Path]:
        return sorted(file for file in self.folder.iterdir() if NAME.fullmatch(file.name))

    def _shards(self) -> list[Path]:
        return sorted(file for file in (self.folder / SHARDS).glob("*.npz") if file.stem.isdecimal())

    @classmethod
    def read(cls, path: str | Path) -> SampleFolder:
        folder = Path(path)
        if not cls.fits(folder):
            raise cls.refusal(folder, f"it has no {RECORD_FILE}")
        with cls.reading(folder / RECORD_FILE):
            record = read_object(folder / RECORD_FILE)
            missing = [name for name in ("sampler", "steps", "cfg", "seed") if name not in record]
            if missing:
                raise ValueError(f"it has no {missing[0]!r}")
        return cls(folder, record)


def shown(pixels: Pixels) -> list[Pixels]:
    """M S S C, or of videos M F S S C, as pictures."""
    return [strip(one) if one.ndim == 4 else one for one in pixels]


def open_picture(file: Path) -> Image.Image:
    """The image in a file; raises `DyditError` where it holds none."""
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:
        raise DyditError(f"{file}: not readable as a picture ({str(error).splitlines()[0]}); make it anew") from None


def read_picture(file: Path) -> Pixels:
    """S S C, C of 1 where it is grey and else 3; raises `DyditError` where it cannot be read."""
    image = open_picture(file)
    pixels = np.asarray(image.convert("L" if image.mode == "L" else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1)


def read_first(file: Path, count: int) -> Pixels:
    """M S S C, or of videos M F S S C, at most `count`: the first of an .npz, without reading what is behind them.

    Raises `DyditError` where it holds no uint8 images or videos.
    """
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{ARRAY}.npy") as member:
            version = np.lib.format.read_magic(member)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(member)
            if fortran or dtype != np.uint8 or len(shape) not in (4, 5) or shape[-1] not in (1, 3):
                raise ValueError(f"{ARRAY} is {dtype} of shape {shape}")
            shape = (min(count, shape[0]), *shape[1:])
            return np.frombuffer(member.read(int(np.prod(shape))), dtype=np.uint8).reshape(shape)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DyditError(f"{file}: not readable as samples ({error})") from None


def read_arrays(file: Path) -> Iterator[tuple[str, Pixels]]:
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


def write_npz(path: str | Path, shape: tuple[int, ...], parts: Iterable[Pixels]) -> None:
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


def read_npz(path: Path) -> Pixels:
    """The array of a file that `write_npz` wrote; raises `DyditError` where it is none."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            array = arrays[ARRAY]
        if array.dtype != np.uint8 or array.ndim not in (4, 5):
            raise ValueError(f"{ARRAY} is {array.dtype} of {array.ndim} dimensions")
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DyditError(f"{path}: damaged shard ({error}); delete it and run the same command again") from None
    return array


def rgb(pixels: Pixels) -> Pixels:
    """... S S C -> ... S S 3; grey is repeated."""
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
