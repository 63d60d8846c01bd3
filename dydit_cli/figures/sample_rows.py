"""Rows of samples to set side by side: from a study's folder, or from several that `dydit sample` wrote."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dydit_cli.errors import DyditError
from dydit_cli.figures.samples import SHOWN, SampleRow, SampleRows
from dydit_cli.figures.study import LOOKS, TABLE_FILE, WHOLE, StudyTable, read_study, row_label

RECORD_FILE, ARRAY_FILE = "samples.json", "samples.npz"
ARRAY = "arr_0"
NAME = re.compile(r"\d+-class(\d+)\.png")
# what must be the same for images to belong together
SAME = ("seed", "classes", "sampler", "steps", "cfg", "cfg_channels", "cfg_interval", "spacing", "vae")
HALF = 0.5


def read_rows(paths: Sequence[Path]) -> SampleRows:
    """A study's samples where one folder with a study is named; else a row for each folder of `dydit sample`.

    Raises `DyditError` for what is neither, and for folders whose images were not drawn alike.
    """
    if len(paths) == 1 and (paths[0] / TABLE_FILE).is_file():
        return of_study(paths[0])
    records = [read_record(path) for path in paths]
    for path, record in zip(paths[1:], records[1:], strict=True):
        for name in SAME:
            if record.get(name) != records[0].get(name):
                raise DyditError(
                    f"{path}: drawn with {name} {record.get(name)}, {paths[0]} with {records[0].get(name)}; "
                    "sample both with the same settings"
                )
    first, count = records[0], min(int(record.get("images", SHOWN)) for record in records)
    classes = first.get("classes") or None
    names = [Path(str(record.get("checkpoint", path.name))).name for path, record in zip(paths, records, strict=True)]
    # of one checkpoint drawn in two ways the folders' names tell which is which
    labels = [path.name if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
    return SampleRows(
        [SampleRow(label, read_pixels(path)) for path, label in zip(paths, labels, strict=True)],
        [int(classes[i % len(classes)]) for i in range(count)] if classes else None,
        f"{first['sampler']}, {first['steps']} steps, cfg {first['cfg']:g}, seed {first['seed']}",
    )


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


@dataclass(frozen=True)
class Kind:
    """What a study has a row of for every seed."""

    method: str
    target: float
    ratio: float

    @property
    def name(self) -> str:
        """What the study calls its samples."""
        return self.method if self.method in WHOLE or math.isnan(self.target) else f"{self.method}-{self.target:g}"


def of_study(folder: Path) -> SampleRows:
    """The static models, and of each method the samples nearest to half of the static MACs, or to the DyDiT that is."""
    study = read_study(folder)
    if not (folder / ARRAY_FILE).is_file():
        raise DyditError(f"{folder}: this study kept no samples: it has no {ARRAY_FILE}; keep some in its recipe")
    kept = dict(read_arrays(folder / ARRAY_FILE))
    means = study.rows.groupby(["method", "target"], dropna=False, sort=False)["ratio"].mean().reset_index()
    kinds = [Kind(line["method"], line["target"], line["ratio"]) for line in means.to_dict("records")]
    kinds = [kind for kind in kinds if kind.name in kept]
    if not kinds:
        raise DyditError(f"{folder / ARRAY_FILE}: holds none of the rows of {TABLE_FILE}; run the study again")
    classes = study.protocol.get("classes")
    classes = classes if isinstance(classes, list) and classes else None
    kinds = alike(kinds)
    places = spread(min(len(kept[kind.name]) for kind in kinds), len(classes or ()))
    return SampleRows(
        [SampleRow(row_label(kind.method, kind.target), kept[kind.name][places], kind.ratio) for kind in kinds],
        [int(classes[i % len(classes)]) for i in places] if classes else None,
        study_note(study),
        places,
    )


def spread(images: int, classes: int) -> list[int]:
    """Which of `images` that go through the classes in turn are shown: from all over the classes where there are many."""
    shown, among = min(SHOWN, images), min(images, classes)
    return [i * among // shown for i in range(shown)] if among > shown else list(range(shown))


def alike(kinds: list[Kind]) -> list[Kind]:
    """One target of each method, in the order of `LOOKS`: those whose MACs are nearest to one DyDiT's."""
    wanted = min((kind.ratio for kind in kinds if kind.method == "dydit"), key=lambda ratio: abs(ratio - HALF), default=HALF)
    order = [*LOOKS, *(kind.method for kind in kinds)]
    methods = sorted({kind.method for kind in kinds}, key=order.index)
    of_each = ([kind for kind in kinds if kind.method == method] for method in methods)
    return [min(targets, key=lambda kind: abs(kind.ratio - wanted)) for targets in of_each]


def study_note(study: StudyTable) -> str:
    """How a study's samples were drawn."""
    protocol = study.protocol
    if not {"sampler", "steps", "cfg"} <= protocol.keys():
        return ""
    seed = f", seed {study.rows['seed'].iloc[0]}"
    return f"{protocol['sampler']}, {protocol['steps']} steps, cfg {protocol['cfg']:g}{seed}"
