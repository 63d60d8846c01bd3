"""Keeps the `Routing` of every model evaluation of a sampling run.

Legend: T sampling steps, L depth, B batch, H heads (and groups), N tokens, M images, G guidance halves (2 with guidance).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dydit_cli.diffusion.generate import Progress
from dydit_cli.errors import DyditError
from dydit_cli.model.routing import Routing
from dydit_cli.model.sparse import Executable

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class RoutingRecord:
    """heads, groups: T L H, the same for every image; tokens: T L G M N; timesteps: T, the noisiest first."""

    timesteps: NDArray[np.int64]
    heads: BoolArray
    groups: BoolArray
    tokens: BoolArray

    @property
    def images(self) -> int:
        return self.tokens.shape[3]

    def routing(self, step: int) -> Routing:
        """The step's masks for a batch of G * M samples, the labelled half first."""
        _T, L, G, M, N = self.tokens.shape
        tokens = torch.from_numpy(self.tokens[step].reshape(L, G * M, N)).float()
        heads = torch.from_numpy(self.heads[step]).float()[:, None].expand(-1, G * M, -1)  # L GM H
        groups = torch.from_numpy(self.groups[step]).float()[:, None].expand(-1, G * M, -1)
        return Routing(heads, groups, tokens)


@dataclass
class Recorder:
    """A denoiser that runs `model` and remembers what it switched on; pass `see` to `generate` as `on_progress`."""

    model: Executable
    halves: int
    _progress: Progress | None = None
    _width: dict[int, tuple[int, BoolArray, BoolArray]] = field(default_factory=dict)
    _tokens: dict[int, list[BoolArray]] = field(default_factory=dict)

    def see(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        out, routing = self.model(x, t, y, return_routing=True)
        assert self._progress is not None, "generate() was not given `see`"
        step = self._progress.step
        L, _, N = routing.tokens.shape
        heads, groups = (mask[:, 0].bool().cpu().numpy() for mask in (routing.heads, routing.groups))
        self._width[step] = (self._progress.timestep, heads, groups)
        tokens = routing.tokens.bool().view(L, self.halves, -1, N).cpu().numpy()  # L G B N
        self._tokens.setdefault(step, []).append(tokens)
        return out

    def record(self) -> RoutingRecord:
        """All that was seen; raises `DyditError` before anything was."""
        if not self._width:
            raise DyditError("nothing was recorded: no sampling step ran")
        steps = sorted(self._width)
        return RoutingRecord(
            timesteps=np.array([self._width[step][0] for step in steps], dtype=np.int64),
            heads=np.stack([self._width[step][1] for step in steps]),
            groups=np.stack([self._width[step][2] for step in steps]),
            tokens=np.stack([np.concatenate(self._tokens[step], axis=2) for step in steps]),
        )
