"""Keeps what every model evaluation of a sampling run switched on, and counts what it executed.

Numbers of active tokens are kept for all images, the masks themselves for the first ones, so that a long run stays small.

Legend: T sampling steps, L depth, B batch, H heads (and groups), N tokens, M images, K of them with masks, G guidance
halves (2 with guidance).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dydit_cli.artifacts.profile import FILMED, BoolArray, RoutingRecord
from dydit_cli.diffusion.generate import Progress, generate
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.diffusion.sampler import Denoiser
from dydit_cli.errors import DyditError
from dydit_cli.flops.executed import Executed
from dydit_cli.model.caching import Forecast
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.execution import Executable
from dydit_cli.model.merging import Merging
from dydit_cli.model.routing import Routing

KEPT_MASKS = 64

FILM_BYTES = 1_000_000  # that all steps of some images may take

PIXELS = (1, 3)  # channels of a picture that can be looked at


@dataclass
class Tally:
    """MACs of a whole run: `counted` by the calls that ran and `formula` in closed form, by what they belong to, and
    calls without a handle (name to calls)."""

    counted: Counter[str] = field(default_factory=Counter)
    formula: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

    @property
    def agree(self) -> bool:
        return self.counted == self.formula and not self.unknown

    def add(self, region: str, executed: Executed, formula: int) -> None:
        if executed.macs or formula:
            self.counted[region] += executed.macs
            self.formula[region] += formula
        self.unknown += executed.unknown


@dataclass
class Recorder:
    """A denoiser that runs `model` and remembers what it switched on, over a whole run with `sample`; where something else
    runs `generate`, it gets `see` as `on_progress`.

    Every evaluation is counted in two ways, in `tally`. Masks are kept of the first `keep` images.
    """

    model: Executable
    halves: int
    keep: int = KEPT_MASKS
    tally: Tally = field(default_factory=Tally)
    _progress: Progress | None = None
    _width: dict[int, tuple[float, BoolArray, BoolArray, Forecast | None]] = field(default_factory=dict)
    _counts: dict[int, list[NDArray[np.int32]]] = field(default_factory=dict)
    _bits: dict[int, list[NDArray[np.uint8]]] = field(default_factory=dict)
    _film: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def merging(self) -> Merging | None:
        return self.model.merging

    def sample(
        self,
        labels: Tensor,
        settings: SamplerSettings,
        *,
        seed: int,
        first: int = 0,
        batch: int = 64,
        denoiser: Denoiser | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Tensor:
        """Plans and samples for labels (M,), the images `first` and on: M C S S, float32 on cpu, on the model's device.

        `denoiser` runs in place of this one and passes its calls on to it, as a `StepTimer` does.
        """
        config = self.config
        ready = settings.for_model(config)
        self.plan(ready.timesteps or ())

        def see(progress: Progress) -> None:
            self.see(progress)
            if on_progress:
                on_progress(progress)

        return generate(
            denoiser or self,
            labels,
            config.sample_shape,
            ready,
            null_class=config.null_class,
            seed=seed,
            first=first,
            batch=batch,
            device=self.model.device,
            on_progress=see,
        )

    def see(self, progress: Progress) -> None:
        self._progress = progress

    @property
    def call(self) -> int:
        """Which of its run's model calls is made, or was made last."""
        assert self._progress is not None, "generate() was not given `see`"
        return self._progress.call

    def plan(self, timesteps: Sequence[float]) -> None:
        """Decides heads and groups of the whole run, counted."""
        with Executed() as executed:
            macs = self.model.plan(timesteps)
        self.tally.add("plan", executed, macs)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        assert self._progress is not None, "generate() was not given `see`"
        step, first = self.call, self._progress.first
        if first == 0 and self.config.in_channels in PIXELS and self.config.frames is None:
            images = x[: min(FILMED, len(x) // self.halves)]  # K C S S
            self._film[step] = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
        out, routing = self._counted(x, t, y)
        heads, groups = (mask[:, 0].bool().cpu().numpy() for mask in (routing.heads, routing.groups))
        self._width[step] = (self._progress.timestep, heads, groups, routing.forecast)
        L, _, N = routing.tokens.shape
        tokens = routing.tokens.bool().view(L, self.halves, -1, N).cpu().numpy()  # L G B N
        self._counts.setdefault(step, []).append(tokens.sum(axis=3, dtype=np.int32))
        kept = self._bits.setdefault(step, [])
        if first < self.keep or not kept:
            kept.append(np.packbits(tokens[:, :, : max(0, self.keep - first)], axis=-1))
        return out

    def _counted(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Routing]:
        timestep = t[0].item()
        self.plan([timestep])  # where the solver chose it; else it is planned already
        with Executed() as executed:
            macs = self.model.prepare(timestep, y)
        self.tally.add("ahead", executed, macs)
        with Executed() as executed:
            out, routing = self.model(x, t, y, return_routing=True)
        self.tally.add("steps", executed, int(self.model.macs(routing).sum()))
        return out, routing

    def film(self) -> NDArray[np.uint8] | None:
        """T K C S S: as many of the first images as there is room for, at every call; None where there is none."""
        if not self._film:
            return None
        film = np.stack([self._film[step] for step in sorted(self._film)])
        kept = film[:, : FILM_BYTES // film[:, 0].nbytes]
        return kept if kept.size else None

    def record(self) -> RoutingRecord:
        """All that was seen; raises `DyditError` before anything was."""
        if not self._width:
            raise DyditError("nothing was recorded: no sampling step ran")
        steps = sorted(self._width)
        bits = np.stack([np.concatenate(self._bits[step], axis=2) for step in steps])
        forecasts = [self._width[step][3] for step in steps]
        return RoutingRecord(
            timesteps=np.array([self._width[step][0] for step in steps]),
            heads=np.stack([self._width[step][1] for step in steps]),
            groups=np.stack([self._width[step][2] for step in steps]),
            token_counts=np.stack([np.concatenate(self._counts[step], axis=2) for step in steps]),
            tokens=np.unpackbits(bits, axis=-1, count=self.config.num_tokens).astype(bool),
            merging=self.merging,
            forecasts=np.array([forecast.values if forecast else 0 for forecast in forecasts]),
            cache_at=next((forecast.at for forecast in forecasts if forecast), "sublayers"),
        )
