"""Numbers with their units, for tables and axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# a model's MACs by part, as tables call them
PARTS = {
    "attention": "attention",
    "mlp": "MLP",
    "routers": "routers",
    "modulation": "adaLN",
    "norms": "LayerNorms",
    "embed_and_head": "embedders, final layer",
}

SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def scale_of(value: float) -> tuple[float, str]:
    """The divisor and the prefix that suit `value`: 118.7e9 gives (1e9, "G")."""
    return next(((size, prefix) for size, prefix in SCALES if abs(value) >= size), (1.0, ""))


def macs(value: float) -> str:
    """`118.69 GMACs`."""
    size, prefix = scale_of(value)
    return f"{value / size:.2f} {prefix}MACs"


def per_mac(unit: str) -> int:
    """1 for `mac`, 2 for `flop`."""
    return 2 if unit == "flop" else 1


def name(unit: str) -> str:
    """`MACs` or `FLOPs`."""
    return "FLOPs" if unit == "flop" else "MACs"


def work(value: float, unit: str) -> str:
    """MACs in `unit`: `118.69 GMACs`, or `237.38 GFLOPs`."""
    value *= per_mac(unit)
    size, prefix = scale_of(value)
    return f"{value / size:.2f} {prefix}{name(unit)}"


def convention(unit: str) -> str:
    """What the unit counts."""
    return "1 multiply-accumulate = 2 FLOPs" if unit == "flop" else "1 MAC = 1 FLOP of fvcore and the papers"


def share(value: float) -> str:
    """`49.8 %`."""
    return f"{100 * value:.1f} %"


def seconds(value: float) -> str:
    """`4.2 s`, `3 min 05 s` or `2 h 10 min`."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(bytes: float) -> str:
    """`13.5 GB`."""
    unit, prefix = scale_of(bytes)
    return f"{bytes / unit:.{2 if prefix in 'TG' and prefix else 0}f} {prefix}B"


def sampling(record: Mapping[str, Any]) -> str:
    """How a record's images were drawn: `ddim, 50 steps`, or `ODE by heun, 25 steps, 50 model calls`."""
    steps = "steps of its own choice" if record["steps"] is None else f"{record['steps']} steps"
    if "kind" not in record:
        return f"{record['sampler']}, {steps}"
    calls = "" if record["model_calls"] is None else f", {record['model_calls']} model calls"
    return f"{record['kind']} by {record['solver']}, {steps}{calls}"
