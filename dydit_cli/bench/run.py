"""Static against masked and sparse: the same batch at the same timesteps, one after the other, again and again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

import dydit_cli
from dydit_cli.bench.breakdown import breakdown
from dydit_cli.bench.interleave import OnWork, interleaved
from dydit_cli.bench.random_model import random_dydit
from dydit_cli.checkpoint.read import Source, read
from dydit_cli.devices import pick_device, wait
from dydit_cli.diffusion.schedule import spaced_timesteps
from dydit_cli.errors import DyditError
from dydit_cli.flops.analytic import static_macs, total_macs
from dydit_cli.model.config import DiTConfig, named_config
from dydit_cli.model.dydit import DyDiT, static_twin
from dydit_cli.model.slices import SliceStats, WeightAccess
from dydit_cli.model.sparse import SparseDyDiT

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class BenchSettings:
    """`batch` is what the model sees (guidance's two halves included); `measured` of the `steps` sampling timesteps are
    run, spread evenly, `repeats` times over; `compile` adds the static model under torch.compile and the sparse one with
    its elementwise work fused."""

    batch: int = 4
    steps: int = 50
    measured: int = 10
    repeats: int = 3
    dtype: str = "fp32"
    compile: bool = False
    masked: bool = True
    access: WeightAccess | None = None
    plan_memory: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        spaced_timesteps(self.steps)
        for name, value in (("batch", self.batch), ("measured steps", self.measured), ("repeats", self.repeats)):
            if value < 1:
                raise DyditError(f"{name} {value}; it must be 1 or more")
        if self.dtype not in DTYPES:
            raise DyditError(f"no dtype {self.dtype!r}; choose one of {', '.join(DTYPES)}")

    @property
    def timesteps(self) -> list[int]:
        """The sampling timesteps that are run."""
        every = spaced_timesteps(self.steps)
        count = min(self.measured, self.steps)
        return [every[round(i * (len(every) - 1) / max(1, count - 1))] for i in range(count)]


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
class BenchResult:
    """Seconds are of a whole sampling run of `steps` model evaluations, planning included.

    `speedup` is of the faster sparse variant (`subject`) against the fastest static one (`baseline`), and
    `realised_efficiency` is `speedup` times `flops_ratio`; `efficiencies` holds it against every static variant. `tome`
    is the share of merged tokens where that was timed, and not sparse execution.
    """

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
            device=describe(place),
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
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `speedup` and `realised_efficiency` are medians, their quartiles beside them."""
        values = asdict(self)
        for name in ("speedup", "realised_efficiency"):
            spread = values.pop(name)
            values |= {name: spread["median"], f"{name}_quartiles": [spread["low"], spread["high"]]}
        return {**values, "versions": {"dydit": dydit_cli.__version__, "torch": torch.__version__}}


def bench(
    checkpoint: Source | None = None,
    *,
    model: str = "DiT-S/2",
    flops_ratio: float = 0.5,
    settings: BenchSettings = BenchSettings(),
    device: str = "auto",
    on_work: OnWork = lambda amount, note: None,
) -> BenchResult:
    """Times a DyDiT checkpoint, or a random DyDiT of the published size `model` at `flops_ratio`.

    Raises `DyditError` for a static checkpoint or a setting out of range.
    """
    place = pick_device(device)
    timesteps = spaced_timesteps(settings.steps)
    if checkpoint is not None:
        loaded = read(checkpoint)
        built, name = loaded.build().float(), str(loaded.path)
        if not isinstance(built, DyDiT):
            raise DyditError(f"{name}: is a static model; convert it first: dydit convert {name} DST")
        dynamic = built
    else:
        dynamic, name = random_dydit(named_config(model), flops_ratio, timesteps, settings.seed), model
    dynamic = dynamic.to(place, DTYPES[settings.dtype])
    return _measure(dynamic, name, settings, place, on_work)


def _measure(dynamic: DyDiT, name: str, settings: BenchSettings, place: torch.device, on_work: OnWork) -> BenchResult:
    config, dtype = dynamic.config, DTYPES[settings.dtype]
    x, y = make_inputs(config, settings, place, dtype)
    sparse = SparseDyDiT(dynamic, access=settings.access, plan_memory=settings.plan_memory)
    static = static_twin(dynamic)
    sparse_variants = {"sparse": sparse}
    variants: dict[str, Callable[..., Any]] = {"static": static}
    if settings.compile:
        variants["static compiled"] = torch.compile(static, dynamic=False)
        sparse_variants["sparse compiled"] = SparseDyDiT(
            dynamic, access=settings.access, plan_memory=settings.plan_memory, compile=True
        )
    if settings.masked:
        variants["masked"] = dynamic
    variants |= sparse_variants

    timesteps = settings.timesteps
    with torch.inference_mode():
        start = time.perf_counter()
        SparseDyDiT(dynamic, access=settings.access).plan(spaced_timesteps(settings.steps))
        wait(place)
        plan_seconds = time.perf_counter() - start
        # the steps that are run share their adaLN with one another alone, fewer than in a whole run: no advantage
        for variant in sparse_variants.values():
            variant.plan(timesteps)

        def forget() -> None:
            for variant in sparse_variants.values():
                variant.forget()  # every sampling run makes its copies anew

        means, peaks = interleaved(variants, x, y, timesteps, settings.repeats, place, on_work, forget)
        totals = {kind: [seconds * settings.steps for seconds in values] for kind, values in means.items()}
        for kind in sparse_variants:
            totals[kind] = [seconds + plan_seconds for seconds in totals[kind]]
        macs = [total_macs(sparse(x, torch.full_like(y, t), y, return_routing=True)[1], config) for t in timesteps]
        parts = breakdown(static, sparse, x, y, timesteps, settings.steps, place)
    ratio = torch.stack(macs).double().mean().item() / static_macs(config)
    return BenchResult.of(
        name, settings, place, totals, "sparse", ratio, slices=sparse.stats, peaks=peaks, parts=parts, plan_seconds=plan_seconds
    )


def make_inputs(config: DiTConfig, settings: BenchSettings, place: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x: B Cin S S noise, and y: (B,) classes, of the settings' seed."""
    generator = torch.Generator().manual_seed(settings.seed)
    x = torch.randn(settings.batch, config.in_channels, config.input_size, config.input_size, generator=generator)
    y = torch.randint(0, config.num_classes, (settings.batch,), generator=generator)
    return x.to(place, dtype), y.to(place)


def describe(place: torch.device) -> str:
    """The device in words."""
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    return f"{place.type}, {torch.get_num_threads()} threads" if place.type == "cpu" else place.type
