"""Values as a reader sees them: names in place of paths, labels in place of keys, units beside numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath, PureWindowsPath
from typing import Any

from dydit_cli import units

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
    "cfg_channels": "guided channels",
    "cfg_interval": "guided timesteps",
    "data": "data set",
    "dtype": "data type",
    "flops_ratio": "FLOPs ratio asked",
    "flops_ratio_asked": "FLOPs ratio asked",
    "macs_static": "static model",
    "measured": "steps measured",
    "model": "model",
    "resize": "resize filter",
    "side": "pixels a side",
    "spacing": "timestep spacing",
    "steps": "sampling steps",
}
# what holds a path, or may
PATHS = {"checkpoint", "source", "samples", "reference", "vae", "recipe", "data", "model"}
ABSOLUTE = re.compile(r"(?<![\w/.:~-])(?:~?/|[A-Za-z]:[\\/])[^\s,;:'\"<>()]*[^\s,;:'\"<>().]")


def short(text: str) -> str:
    """`text` with every absolute path in it cut to its last part: a page travels, and names of folders are enough."""
    return ABSOLUTE.sub(lambda found: _last(found.group()), text)


def name_of(path: str) -> str:
    """The last part of a path, or of `latents:PATH`."""
    scheme, colon, rest = path.partition(":")
    if colon and len(scheme) > 1:
        return f"{scheme}:{_last(rest)}"
    return _last(path)


def scrubbed(value: Any, key: str = "") -> Any:
    """JSON values without paths: those of `PATHS` are cut to their last part, other strings as `short` does."""
    if isinstance(value, Mapping):
        return {name: scrubbed(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [scrubbed(inner, key) for inner in value]
    if isinstance(value, str):
        return name_of(value) if key in PATHS and not value.startswith("DiT-") else short(value)
    return value


def protocol(values: Mapping[str, Any], keys: tuple[str, ...] | None = None) -> dict[str, str]:
    """Label and text of those `keys` that are known, in their order; of all plain values without `keys`."""
    wanted = keys if keys is not None else tuple(values)
    return {label(key): text_of(key, values[key]) for key in wanted if values.get(key) is not None}


def label(key: str) -> str:
    """`cfg_interval` as `guided timesteps`."""
    return LABELS.get(key, key.replace("_", " "))


def text_of(key: str, value: Any) -> str:
    """A value of a protocol."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("accuracy"):
        return units.share(value)
    if key.endswith("sha256"):
        return f"{str(value)[:12]}…"
    if key.endswith("_share"):
        return units.share(value)
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
    found: list[list[int]] = []
    for one in numbers:
        if found and one == found[-1][1] + 1:
            found[-1][1] = one
        else:
            found.append([one, one])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def _last(path: str) -> str:
    windows = PureWindowsPath(path)
    return (windows.name if windows.drive else PurePath(path).name) or path
