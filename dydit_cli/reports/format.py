"""Numbers with their units: protocols, and tables from data frames whose columns are named as dydit's CSV files name them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dydit_cli import units
from dydit_cli.reports.section import Column, Single, Table, Value

# settings whose key does not name them well
LABELS = {
    "batch": "batch (both guidance halves)",
    "batch_size": "batch size",
    "lr": "learning rate",
    "lr_schedule": "learning rate schedule",
    "router_lr": "routers' learning rate",
    "grad_limit": "gradient limit",
    "ema_decay": "EMA decay",
    "unit": "counted",
    "cfg": "guidance scale",
    "cache_at": "what the cache keeps",
    "cache_first": "steps computed first",
    "cache_last": "steps computed last",
    "cfg_channels": "guided channels",
    "cfg_interval": "guided timesteps",
    "data": "data set",
    "dtype": "data type",
    "flops_ratio": "FLOPs ratio asked",
    "flops_ratio_asked": "FLOPs ratio asked",
    "kind": "equation",
    "macs_static": "static model",
    "measured": "steps measured",
    "model": "model",
    "resize": "resize filter",
    "side": "pixels a side",
    "spacing": "timestep spacing",
    "steps": "sampling steps",
    "tome": "ToMe",
}


def protocol(values: Mapping[str, Any], keys: Sequence[str] | None = None) -> dict[str, str]:
    """Label and text of those `keys` that are known, in their order; of all plain values without `keys`."""
    return {label(key): text_of(key, values[key]) for key in (values if keys is None else keys) if values.get(key) is not None}


def label(key: str) -> str:
    """`cfg_interval` as `guided timesteps`."""
    return LABELS.get(key, key.replace("_", " "))


def text_of(key: str, value: Any) -> str:
    """A value of a protocol."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith(("accuracy", "_share")):
        return units.share(value)
    if key.endswith("sha256"):
        return f"{str(value)[:12]}…"
    if key.startswith("macs_"):
        return units.macs(value)
    if key == "seconds":
        return units.seconds(value)
    if isinstance(value, list):
        if key == "classes":
            return runs(value)
        return (" to " if key.endswith("interval") else ", ").join(text_of("", part) for part in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {text_of(name, inner)}" for name, inner in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) and key != "seed" else str(value)


def runs(numbers: list[int]) -> str:
    """[0, 1, 2, 7] as `0-2, 7`."""
    result: list[list[int]] = []
    for one in numbers:
        if result and one == result[-1][1] + 1:
            result[-1][1] = one
        else:
            result.append([one, one])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in result)


ORDINALS = {"step", "timestep", "block", "image", "label", "seed", "class", "row", "column"}

SPREADS = {"mean": "mean", "std": "standard deviation", "sd": "standard deviation", "min": "lowest", "max": "highest",
           "median": "median", "low": "lower quartile", "high": "upper quartile"}  # fmt: skip

SHARES = {"recognised", "recognized"}

# columns whose key does not name them well
NAMES = {
    "frechet": "Fréchet distance",
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "inception score",
    "label": "class",
    "flops_ratio_asked": "lambda",
    "macs": "work",
    "macs_per_image": "work for an image",
    "seconds_per_image": "time",
    "dynamic_macs": "dynamic",
    "static_macs": "static",
    "mlp_macs": "MLP",
    "modulation_macs": "adaLN",
    "norms_macs": "LayerNorms",
    "embed_and_head_macs": "embedders, final layer",
}

NOTHING = "\N{EN DASH}"

LOW, HIGH = "lower is better", "higher is better"

JUDGED = ("frechet", "precision", "recall")

UNITS = {
    "frechet": (LOW, ".2f"),
    "fid": (LOW, ".2f"),
    "sfid": (LOW, ".2f"),
    "inception_score": (HIGH, ".2f"),
    "precision": (f"0 to 1, {HIGH}", ".3f"),
    "recall": (f"0 to 1, {HIGH}", ".3f"),
    "speedup": ("times", ".3f"),
    "realised_efficiency": ("1: time follows FLOPs", ".3f"),
    "target": ("of static MACs", ".2f"),
    "loss_ratio": ("of static loss", ".3f"),
}


def frame_table(caption: str, frame: pd.DataFrame, *, folded: bool = False) -> Table:
    """A table of all of `frame`."""
    columns = [column(str(name), frame[name]) for name in frame.columns]
    return table(caption, columns, list(frame.itertuples(index=False, name=None)), folded=folded)


def table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Any]], *, folded: bool = False) -> Table:
    """A table whose columns are given, missing values allowed."""
    return Table(caption, columns, [[value_of(value) for value in row] for row in rows], folded)


def column(key: str, values: pd.Series) -> Column:
    """Heading, unit and digits by the name of a column."""
    stem, _, ending = key.rpartition("_")
    spread = SPREADS.get(ending, "") if stem else ""
    if not spread:
        stem = key
    name = NAMES.get(stem, stem.removesuffix("_share").removesuffix("_macs").removesuffix("_seconds").replace("_", " "))
    name = f"{name}, {spread}" if spread else name
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return Column(name)
    if stem in ORDINALS:
        return Column(name, spec=".0f")
    of, _, judge = stem.partition("_")  # a study's figure by another judge than its main one
    if stem in UNITS or (judge and of in JUDGED):
        return Column(name if stem in UNITS else f"{NAMES.get(of, of)}, {judge}", *UNITS[stem if stem in UNITS else of])
    words, largest = stem.split("_"), float(values.abs().max()) if len(values) else 0.0
    each = " per image" if stem.endswith("per_image") else ""
    if "macs" in words:
        size, prefix = units.scale_of(largest)
        return Column(name.replace(" macs per image", ""), f"{prefix}MACs{each}", ".2f", 1 / size)
    if "seconds" in words:
        unit, scale = ("ms", 1000.0) if len(values) and largest < 1 else ("s", 1.0)
        return Column(name.removesuffix(" per image"), f"{unit}{each}", ".3f", scale)
    if stem.endswith("_share") or "_share_" in stem or stem in SHARES:
        return Column(name.replace(" share", ""), "%", ".1f", 100.0)
    if "ratio" in words:
        return Column(name, "of static MACs", ".3f")
    whole = bool(((values.dropna() % 1) == 0).all())
    return Column(name, "count" if whole else "no unit", ",.0f" if whole else ".4g")


def value_of(value: Any) -> Value:
    """What a cell holds: a number, a text, nothing, or a pair of them."""
    if isinstance(value, tuple):
        mean, spread = value
        return _single(mean), _single(spread)
    return _single(value)


def _single(value: Any) -> Single:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str | int | float) else str(value)


def shown(value: Value, column: Column) -> str:
    """The text of a cell."""
    if isinstance(value, tuple):
        mean, spread = (shown(part, column) for part in value)
        return mean if value[1] is None else f"{mean} ± {spread}"
    if value is None:
        return NOTHING
    if isinstance(value, str):
        return value
    return format(value * column.scale, column.spec) if column.spec else f"{value:g}"
