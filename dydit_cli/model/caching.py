"""Caching between sampling steps: some are computed, and the others' outputs are forecast from those, without training.

`fora` reuses the last value (FORA, Selvaraju et al., arXiv 2407.01425), `taylorseer` is a Taylor series whose derivatives are
finite differences over computed steps (TaylorSeer, Liu et al., arXiv 2503.06923). Either is a weighted sum of the last computed
outputs: a method says at which steps it computes, and with which weights it sums. What is kept is the output of every attention
and MLP before its gate, which follows the timestep, or the model's own output.

Of a DyDiT a token that skips an MLP may also keep what that MLP last returned of it, in a computed step before
(`reuse_skipped`), where else it gets nothing. As with FORA nothing is summed for that: it costs no MACs.

A step here is a place on the sampler's grid of timesteps: a sampler of two calls a step comes back to a timestep, and both of
its calls are computed, or both are forecast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast, get_args

from dydit_cli.errors import DyditError
from dydit_cli.model.config import ModelConfig
from dydit_cli.options import Opt

CacheAt = Literal["sublayers", "model"]

NONE = "none"

REUSE = "reuse"  # as lists of caches spell `reuse_skipped`, alone, or as fora:3+reuse


@dataclass(frozen=True)
class CacheMethod:
    """`numbers` follow its name on the command line, the interval first, and an order where it has one. `first` is how many
    steps it computes at the beginning.

    `due(step, last, steps, interval)` is whether it computes number `step` of `steps`, `last` being the last computed one.
    `weights(computed, step)` are those of the outputs at the steps `computed`, the newest first, that sum up to that at `step`:
    of `keeps` of them and an order's more, fewer at the beginning.
    """

    numbers: tuple[str, ...]
    first: int
    due: Callable[[int, int, int, int], bool]
    weights: Callable[[Sequence[int], int], list[float]]
    keeps: int = 1


def taylor_weights(computed: Sequence[int], step: int) -> list[float]:
    """Of a Taylor series around the newest of n steps, of order n - 1.

    The derivative k + 1 is the difference of the last two derivatives k, divided by the distance of the last two steps.
    """
    n = len(computed)
    rows = [[float(i == j) for j in range(n)] for i in range(n)]  # of derivative 0 at every step: the output itself
    weights = list(rows[0])
    for k in range(1, n):
        rows = [
            [(new - old) / (computed[i] - computed[i + 1]) for new, old in zip(rows[i], rows[i + 1], strict=True)]
            for i in range(n - k)
        ]
        scale = (step - computed[0]) ** k / math.factorial(k)
        weights = [weight + scale * own for weight, own in zip(weights, rows[0], strict=True)]
    return weights


# by name; a new one is an entry here
CACHES: dict[str, CacheMethod] = {
    # counted from the last step, which it always computes, as in the authors' code
    "fora": CacheMethod(
        ("INTERVAL",),
        first=1,
        due=lambda step, last, steps, interval: (steps - 1 - step) % interval == 0,
        weights=lambda computed, step: [1.0],
    ),
    "taylorseer": CacheMethod(
        ("INTERVAL", "ORDER"),
        first=2,
        due=lambda step, last, steps, interval: step - last >= interval,
        weights=taylor_weights,
    ),
}


def forms() -> list[str]:
    """What may be typed: none, fora:INTERVAL, ..."""
    return [NONE, *(":".join((name, *method.numbers)) for name, method in CACHES.items())]


def parse_method(text: str) -> tuple[CacheMethod, int, int]:
    """The method, its interval and its order (0 where it has none). Raises `DyditError` for another spelling, and an interval
    under 2."""
    name, *numbers = text.split(":")
    method = CACHES.get(name)
    if method is None or len(numbers) != len(method.numbers) or not all(n.isascii() and n.isdigit() for n in numbers):
        raise DyditError(f"cache {text}: write {' or '.join(forms())}, for instance fora:3")
    interval, order = (*map(int, numbers), 0)[:2]
    if interval < 2:
        raise DyditError(f"cache {text}: an interval of {interval} computes every step; give 2 or more, or --cache {NONE}")
    return method, interval, order


@dataclass(frozen=True)
class CacheOptions:
    """How outputs are cached between sampling steps: `method` as `forms` spells it, and how many steps are always computed.

    Raises `DyditError` as `parse_method` does, and for the rest of it without a method.
    """

    method: Annotated[
        str,
        Opt(
            f"Compute some steps and forecast the others from them: {', '.join(forms())}.", ("--cache",), metavar="METHOD",
        ),
    ] = NONE  # fmt: skip
    first: Annotated[
        int | None,
        Opt(
            "Steps at the beginning that are always computed.",
            ("--cache-first",),
            metavar="K",
            default=", ".join(f"{name} {method.first}" for name, method in CACHES.items()),
        ),
    ] = None
    last: Annotated[
        int | None, Opt("Steps at the end that are always computed.", ("--cache-last",), metavar="K", default="0")
    ] = None
    at: Annotated[
        CacheAt | None,
        Opt(
            "What is kept: the output of every attention and MLP (sublayers), or the model's (model).",
            ("--cache-at",),
            default="sublayers",
        ),
    ] = None
    reuse_skipped: Annotated[
        bool, Opt("Of a DyDiT: a token that skips an MLP keeps the output that it last had there, in a step before.")
    ] = False

    def __post_init__(self) -> None:
        if self.active:
            parse_method(self.method)
        for name, least in (("first", 1), ("last", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise DyditError(f"cache-{name} {value}; it must be {least} or more")
        if self.at not in (None, *get_args(CacheAt)):
            raise DyditError(f"cache-at {self.at!r}; choose one of {', '.join(get_args(CacheAt))}")
        for name in ("first", "last", "at"):
            if not self.active and getattr(self, name) is not None:
                raise DyditError(f"cache-{name} {getattr(self, name)} is for a cache; choose one with --cache, or leave it out")

    @classmethod
    def parse(cls, text: str) -> CacheOptions:
        """As lists of caches spell one: `fora:3`, `fora:3@model` where what is kept is not usual, and `reuse` or `fora:3+reuse`
        where skipped tokens keep their outputs. Raises `DyditError`."""
        text, _, reuse = (NONE, "+", REUSE) if text == REUSE else text.partition("+")
        if reuse not in ("", REUSE):
            raise DyditError(f"cache {text}+{reuse}: what may be added is +{REUSE}")
        method, _, at = text.partition("@")
        return cls(method, at=cast(CacheAt, at) if at else None, reuse_skipped=bool(reuse))

    @property
    def spelled(self) -> str:
        """As `parse` reads it, but for steps that are always computed."""
        at = f"@{self.at}" if self.at not in (None, "sublayers") else ""
        return f"{self.method}{at}+{REUSE}".removeprefix(f"{NONE}+") if self.reuse_skipped else self.method + at

    @property
    def active(self) -> bool:
        """Whether steps are forecast."""
        return self.method != NONE

    @property
    def keeps(self) -> bool:
        """Whether anything is kept from step to step."""
        return self.active or self.reuse_skipped

    def check(self, config: ModelConfig) -> None:
        """Raises `DyditError` for a model that has not what is kept."""
        if self.reuse_skipped and not config.dynamic:
            raise DyditError("reuse-skipped: a static model has no tokens that skip an MLP; leave it out")

    def check_room(self, config: ModelConfig, schedule: CacheSchedule | None, batch: int, itemsize: int, room: int) -> None:
        """Raises `DyditError` where what is kept of `batch` samples would be over `room` bytes; `schedule` is this cache's."""
        reused = reused_numbers(config) * batch * itemsize if self.reuse_skipped else 0
        if reused > room:
            raise DyditError(
                f"reuse-skipped: keeps {reused / 1e6:.3g} MB of {batch} samples at once, and has {room / 1e6:.3g} MB; "
                "lower the batch, raise --plan-memory, or leave it out"
            )
        if schedule is not None:
            schedule.check_room(config, batch, itemsize, room - reused)

    def memory(self, config: ModelConfig, schedule: CacheSchedule | None, batch: int, itemsize: int) -> list[str]:
        """What is kept at most, a line for each part of it; `schedule` is this cache's."""
        lines = [] if schedule is None else [schedule.memory(config, batch, itemsize)]
        if self.reuse_skipped:
            size = reused_numbers(config) * batch * itemsize / 1e6
            lines.append(
                f"reuse-skipped: keeps the last outputs of {config.depth} MLPs, {size:.3g} MB for {batch} samples at once"
            )
        return lines

    def schedule(self, timesteps: Sequence[float] | None, sampler: str = "of its own steps") -> CacheSchedule | None:
        """Of the run of a sampler that calls the model at these timesteps, in this order; None without a cache.

        Raises `DyditError` where the sampler chooses its own (None), for more steps that are always computed than there are,
        and for an order that the computed steps do not allow.
        """
        if not self.active:
            return None
        if timesteps is None:
            raise DyditError(f"cache {self.method}: sampler {sampler} chooses its own steps; choose one of fixed steps")
        method, interval, order = parse_method(self.method)
        places = {timestep: i for i, timestep in enumerate(dict.fromkeys(timesteps))}
        steps, last_ones = len(places), self.last or 0
        first = method.first if self.first is None else self.first
        if (self.first or 0) + last_ones > steps:
            given = [f"cache-{name} {value}" for name, value in (("first", self.first), ("last", self.last)) if value]
            raise DyditError(f"{' and '.join(given)}: the run has {steps} steps, and no more can be computed; lower it")
        computed: list[bool] = []
        last = 0
        for step in range(steps):
            computed.append(step < first or step >= steps - last_ones or method.due(step, last, steps, interval))
            last = step if computed[-1] else last
        if order >= sum(computed):
            raise DyditError(
                f"cache {self.method}: order {order} needs {order + 1} computed steps, and {sum(computed)} of {steps} are; "
                "lower the order or the interval"
            )
        return CacheSchedule(self.method, self.at or "sublayers", first, last_ones, places, tuple(computed))


@dataclass(frozen=True)
class Forecast:
    """What a call was made of in place of computing: the weighted sum of `values` outputs of earlier steps."""

    at: CacheAt
    values: int


@dataclass(frozen=True)
class CacheSchedule:
    """A sampling run's steps: `steps` are their numbers by timestep, and `computed` whether each is computed."""

    method: str
    at: CacheAt
    first: int
    last: int
    steps: dict[float, int]
    computed: tuple[bool, ...]

    @property
    def keeps(self) -> int:
        """How many outputs are kept."""
        method, _, order = parse_method(self.method)
        return method.keeps + order

    def weights(self, computed: Sequence[int], step: int) -> list[float]:
        """As the method's."""
        return parse_method(self.method)[0].weights(computed, step)

    def bytes(self, config: ModelConfig, batch: int, itemsize: int) -> int:
        """What is kept at most: `batch` samples (guidance's halves counted) of numbers of `itemsize` bytes."""
        return self.keeps * kept_numbers(config, self.at) * batch * itemsize

    def check_room(self, config: ModelConfig, batch: int, itemsize: int, room: int) -> None:
        """Raises `DyditError` where what is kept would be over `room` bytes."""
        size = self.bytes(config, batch, itemsize)
        if size > room:
            mend = "lower the batch or raise --plan-memory"
            raise DyditError(
                f"cache {self.method}: keeps {size / 1e6:.3g} MB of {batch} samples at once, and has {room / 1e6:.3g} MB; "
                + (mend if self.at == "model" else f"{mend}, or choose --cache-at model")
            )

    def memory(self, config: ModelConfig, batch: int, itemsize: int) -> str:
        """What is kept at most, in words: of `batch` samples (guidance's halves counted), of numbers of `itemsize` bytes."""
        what = "the model's outputs" if self.at == "model" else f"the outputs of {2 * config.depth} attentions and MLPs"
        kept = f"{self.keeps} of" if self.keeps > 1 else "the last of"
        return (
            f"cache {self.method}: {sum(self.computed)} of {len(self.computed)} steps are computed; keeps {kept} {what}, "
            f"{self.bytes(config, batch, itemsize) / 1e6:.3g} MB for {batch} samples at once"
        )


CACHE_FIELDS = ("cache", "cache_first", "cache_last", "cache_at", "reuse_skipped")


def cache_protocol(options: CacheOptions, schedule: CacheSchedule | None) -> dict[str, Any]:
    """As records of samples and profiles hold it: `CACHE_FIELDS`, or where no step is forecast the first, None, and the last,
    which is None where nothing is reused."""
    reuse = {"reuse_skipped": options.reuse_skipped or None}
    if schedule is None:
        return {"cache": None, **reuse}
    return dict(zip(CACHE_FIELDS, (schedule.method, schedule.first, schedule.last, schedule.at), strict=False)) | reuse


def reused_numbers(config: ModelConfig) -> int:
    """How many numbers of a sample are kept for tokens that skip: every MLP's output."""
    return config.depth * config.num_tokens * config.hidden_size


def kept_numbers(config: ModelConfig, at: CacheAt) -> int:
    """How many numbers of a sample are kept at a step."""
    if at == "model":
        return math.prod(config.sample_shape) // config.in_channels * config.returned_channels
    return 2 * config.depth * config.num_tokens * config.hidden_size
