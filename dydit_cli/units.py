"""Numbers with their units, for tables and axes."""

from __future__ import annotations

SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def scale_of(value: float) -> tuple[float, str]:
    """The divisor and the prefix that suit `value`: 118.7e9 gives (1e9, "G")."""
    return next(((size, prefix) for size, prefix in SCALES if abs(value) >= size), (1.0, ""))


def macs(value: float) -> str:
    """`118.69 GMACs`."""
    size, prefix = scale_of(value)
    return f"{value / size:.2f} {prefix}MACs"


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
