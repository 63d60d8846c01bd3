"""What `dydit bench --json` prints: times of a sampling run, and what they were taken with."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dydit_cli.artifacts.base import JsonFile
from dydit_cli.artifacts.bench_options import BenchSettings
from dydit_cli.devices import describe_device
from dydit_cli.model.weight_cache import SliceStats
from dydit_cli.provenance import command_line
from dydit_cli.version import __version__


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high)


@dataclass(frozen=True)
class BenchResult(JsonFile):
    """Seconds are of a whole sampling run of `steps` model evaluations, planning included.

    `speedup` is of the faster sparse variant (`subject`) against the fastest static one (`baseline`), and
    `realised_efficiency` is `speedup` times `flops_ratio`; `efficiencies` holds it against every static variant. `tome`
    is the share of merged tokens where that was timed, and not sparse execution; `cache` the fields of a cache that was.
    """

    kind = "bench"
    name = "a benchmark"
    made_by = "dydit bench --json > bench.json"
    keys = frozenset({"parts", "settings", "seconds", "flops_ratio", "device", "model", "speedup", "realised_efficiency"})

    model: str
    settings: BenchSettings
    device: str
    seconds: dict[str, Spread]
    subject: str
    baseline: str
    flops_ratio: float
    speedup: Spread
    realised_efficiency: Spread
    efficiencies: dict[str, Spread]
    plan_seconds: float
    slices: SliceStats
    peak_bytes: dict[str, int] = field(default_factory=dict)
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    tome: float | None = None
    cache: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=lambda: {"dydit": __version__, "torch": torch.__version__})
    command: str | None = field(default_factory=command_line)

    @classmethod
    def of(
        cls,
        name: str,
        settings: BenchSettings,
        place: torch.device,
        seconds: dict[str, list[float]],
        kind: str,
        flops_ratio: float,
        *,
        slices: SliceStats,
        peaks: dict[str, int],
        parts: dict[str, dict[str, float]],
        plan_seconds: float = 0.0,
        tome: float | None = None,
        cache: dict[str, Any] | None = None,
    ) -> BenchResult:
        """From what each variant's runs took: those whose names begin with `kind` against those with `static`, run by run."""

        def fastest(which: str) -> str:
            return min((one for one in seconds if one.startswith(which)), key=lambda one: statistics.median(seconds[one]))

        subject, baseline = fastest(kind), fastest("static")

        def speedup_over(other: str, times: float = 1) -> Spread:
            return Spread.of([a / b * times for a, b in zip(seconds[other], seconds[subject], strict=True)])

        return cls(
            model=name,
            settings=settings,
            device=describe_device(place),
            seconds={one: Spread.of(values) for one, values in seconds.items()},
            subject=subject,
            baseline=baseline,
            flops_ratio=flops_ratio,
            speedup=speedup_over(baseline),
            realised_efficiency=speedup_over(baseline, flops_ratio),
            efficiencies={one: speedup_over(one, flops_ratio) for one in seconds if one.startswith("static")},
            plan_seconds=plan_seconds,
            slices=slices,
            peak_bytes=peaks if place.type == "cuda" else {},
            parts=parts,
            tome=tome,
            cache=cache,
        )

    @property
    def timed(self) -> str:
        """What was timed against the static model: `sparse`, `tome` or `cached`."""
        return "cached" if self.cache else "tome" if self.tome else "sparse"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `speedup` and `realised_efficiency` are medians, their quartiles beside them."""
        values = asdict(self)
        for name in ("speedup", "realised_efficiency"):
            spread = values.pop(name)
            values |= {name: spread["median"], f"{name}_quartiles": [spread["low"], spread["high"]]}
        if self.command is None:
            del values["command"]
        return values

    @classmethod
    def read(cls, path: str | Path) -> BenchResult:
        """From the file that `dydit bench --json` was printed to."""
        values = {"versions": {}, "command": None, **cls.read_values(Path(path))}
        with cls.reading(Path(path)):
            for name in ("speedup", "realised_efficiency"):
                values[name] = Spread(values[name], *values.pop(f"{name}_quartiles"))
            for name in ("seconds", "efficiencies"):
                values[name] = {key: Spread(**spread) for key, spread in values[name].items()}
            settings, slices = BenchSettings(**values.pop("settings")), SliceStats(**values.pop("slices"))
            return cls(**values, settings=settings, slices=slices)
