"""Samples as small pictures that a page carries with it."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dydit_cli.artifacts.profile import Profile
from dydit_cli.errors import DyditError
from dydit_cli.figures.catalogue import FIGURES, SOURCES, figures_of
from dydit_cli.figures.inline import inline_svg
from dydit_cli.reports.format import scrubbed
from dydit_cli.reports.section import Drawn, Picture

MOST = 40

LARGEST = 160  # pixels a side; what is larger is scaled down

WIDEST = 1600  # of a picture that is shown alone

NAMED = re.compile(r"^(\d+)-class(\d+)\.png$")

ARRAY = "arr_0.npy"


def pictures_of(folder: Path) -> list[Picture]:
    """The first images that `dydit sample` left in `folder`, as pictures or as an array, each with its number and class."""
    files = sorted(path for path in folder.iterdir() if NAMED.match(path.name))[:MOST]
    if files:
        return [encoded(opened(path), _text(path.name)) for path in files]
    array = folder / "samples.npz"
    if not array.is_file():
        return []
    return [encoded(Image.fromarray(pixels), f"image {i}") for i, pixels in enumerate(first_images(array))]


def picture_file(path: Path, text: str) -> Picture:
    """A file that is shown alone."""
    return encoded(opened(path), text, WIDEST)


def opened(path: Path) -> Image.Image:
    """The image in a file; raises `DyditError` where it holds none."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:
        raise DyditError(f"{path}: not readable as an image: {str(error).splitlines()[0]}") from None


def encoded(image: Image.Image, text: str, largest: int = LARGEST) -> Picture:
    """A PNG of at most `largest` pixels a side, without anything but the pixels."""
    if max(image.size) > largest:
        image = image.copy()
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    pixels = Image.new(image.mode, image.size)
    pixels.paste(image)
    if image.mode == "P":
        pixels = image.convert("RGB")
    pixels.save(target, format="PNG", optimize=True)
    return Picture(target.getvalue(), text)


def first_images(path: Path, most: int = MOST) -> NDArray[np.uint8]:
    """N S S 3: the first images of an ADM array, without reading the gigabytes behind them."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(ARRAY) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if fortran or dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
                raise ValueError(f"its array is {dtype} of shape {shape}, not images")
            shape = (min(most, shape[0]), *shape[1:])
            pixels = np.frombuffer(file.read(int(np.prod(shape))), dtype=np.uint8).reshape(shape)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DyditError(f"{path}: not readable as images: {error}") from None
    return pixels


def _text(name: str) -> str:
    found = NAMED.match(name)
    return f"image {int(found.group(1))}, class {found.group(2)}" if found else name


def drawn_of(path: Path, place: str) -> list[Drawn]:
    """Every figure of `path`, each source read once; `place` keeps identifiers of several inputs apart.

    A sample folder has none: its images are shown as they are.
    """
    loaded: dict[str, Any] = {}
    figures = []
    for name in figures_of(path):
        kind = FIGURES[name]
        if kind.takes == "samples" and (path / "samples.json").is_file():
            continue
        if kind.takes not in loaded:
            loaded[kind.takes] = without_paths(SOURCES[kind.takes].read([path]))
        try:
            figures.append(draw(name, loaded[kind.takes], place))
        except DyditError:
            continue  # readable, but holds too little for this one: the losses of a single model have no gap
    return figures


def draw(name: str, loaded: Any, place: str) -> Drawn:
    """The figure `name` of what its source's `read` returned."""
    kind = FIGURES[name]
    return Drawn(inline_svg(lambda: kind.draw(loaded), f"{place}-{name}"), kind.title, kind.caption)


def draw_samples(paths: Sequence[Path], place: str) -> Drawn | None:
    """The same seeds through several models, of several sample folders; None where they do not belong together."""
    if "samples" not in FIGURES:
        return None
    try:
        return draw("samples", SOURCES["samples"].read(list(paths)), place)
    except DyditError:
        return None


def without_paths(loaded: Any) -> Any:
    """What is drawn, with names in place of paths."""
    if isinstance(loaded, Profile):
        return replace(loaded, summary=scrubbed(loaded.summary))
    return scrubbed(loaded) if isinstance(loaded, dict) else loaded


def read_values(path: Path) -> dict[str, Any]:
    """A JSON object without paths in it; raises `DyditError` where the file holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DyditError(f"{path}: not readable as JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise DyditError(f"{path}: holds no JSON object; it is not what dydit wrote")
    return scrubbed(values)
