"""How much memory tensors take at most, found without that memory: the code itself runs over tensors without numbers.

Torch's fake tensors have a shape, a dtype and a device, on which the choice of a kernel depends (attention by one that keeps no
N x N matrix, say), and so everything is there at its time that a real run would hold.

Legend: B batch, C channels, S size.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dydit_cli.model.backbone import Backbone
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.families import build_shapes
from dydit_cli.train.batch import Batch
from dydit_cli.train.objective import LossWeights, Objective
from dydit_cli.train.recipe import Recipe
from dydit_cli.train.step import Ema, make_optimizer

# What malloc (glibc's) takes of the system for a larger piece goes back at once. Between smaller ones there remain gaps: in a
# training of 64 and of 256 digits at once on a cpu, as much more as this share of them.
LARGE, GAPS = 32 * 2**20, 0.3


class LiveBytes(TorchDispatchMode):
    """Within it, the bytes `now` of all tensors that operations made or took and that still live, and their `peak`; `small`
    and `peak_small` are those in tensors of under 32 MiB, at the same moments."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.small = self.peak_small = 0
        self._living: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._living:
            return
        small = size if size < LARGE else 0

        def gone(_: object) -> None:
            self.now, self.small = self.now - size, self.small - small
            del self._living[key]

        self._living[key] = weakref.ref(storage, gone)
        self.now, self.small = self.now + size, self.small + small
        if self.now > self.peak:
            self.peak, self.peak_small = self.now, self.small

    def held(self) -> tuple[int, int]:
        """Bytes now, and those in small tensors."""
        return self.now, self.small


@contextmanager
def without_numbers() -> Iterator[LiveBytes]:
    """Operations in it compute shapes alone, and count what they would hold."""
    # it loads torch's compiler, which takes seconds
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        yield live


def fake_model(config: ModelConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> Backbone:
    """Within `without_numbers`: a model on `device`."""
    model = build_shapes(config)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    weights = {name: torch.empty(w.shape, dtype=dtype, device=device) for name, w in model.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)
    return model


def weight_bytes(config: ModelConfig, itemsize: int = 4) -> int:
    """Of all weights, as a checkpoint holds them."""
    return sum(w.numel() for w in build_shapes(config).state_dict().values()) * itemsize


def optimizer_bytes(config: ModelConfig, recipe: Recipe) -> int:
    """Two moments of each weight that is trained, and of Muon's matrices one."""
    model = build_shapes(config)
    groups = make_optimizer(model, recipe).param_groups
    return sum(4 * p.numel() * (1 if group["orthogonal"] else 2) for group in groups for p in group["params"])


def training_state(config: ModelConfig, recipe: Recipe, teacher: ModelConfig | None) -> dict[str, int]:
    """Bytes by part that a training holds all the time; float32."""
    model = build_shapes(config)
    trained = sum(4 * p.numel() for _, p in model.trainable())
    return {
        "weights": weight_bytes(config),
        "gradients": trained,
        "optimiser state": optimizer_bytes(config, recipe),
        "EMA": sum(4 * p.numel() for p in model.parameters()),
        "teacher": 0 if teacher is None else weight_bytes(teacher),
    }


class _Seen:
    """In place of a `Batch.complete`, whose numbers a fake one has not: `count` of `size` samples."""

    def __init__(self, count: int, size: int) -> None:
        self._count, self._size = count, size

    def any(self) -> bool:
        return True

    def all(self) -> bool:
        return self._count == self._size

    def nonzero(self) -> Tensor:
        return torch.zeros(self._count, 1, dtype=torch.long)


def training_memory(
    config: ModelConfig, recipe: Recipe, teacher: ModelConfig | None, batch: Batch, complete: int, device: torch.device
) -> dict[str, int]:
    """Bytes by part at the peak of a step. `batch` is a micro-batch of the run's size, without its `complete`, and `complete`
    so many of its samples that the complete model sees too; `teacher` is the teacher's configuration."""
    state = training_state(config, recipe, teacher)
    with without_numbers() as live:
        model = fake_model(config, device)
        model.checkpointing = recipe.train.gradient_checkpointing
        model.train()
        known = None if teacher is None else fake_model(teacher, device).eval().requires_grad_(False)
        average = Ema(model, recipe.train.ema_decay)
        held = live.held()
        objective = Objective(model, recipe.train.model_copy(update={"compile": False}), known)
        part = batch.to(device)
        if complete:
            part = replace(part, complete=cast(Any, _Seen(complete, len(batch))))
        losses = objective(part)
        excess = None if losses.ratio is None else torch.zeros_like(losses.ratio)
        routing, train = recipe.routing, recipe.train
        weights = LossWeights(
            len(batch), max(complete, 1), routing.weight, float(routing.complete_every), train.teacher_weight,
            train.cosine_weight, train.block_weight, train.data_weight,
        )  # fmt: skip
        weights.part(losses, excess).backward()
        del average  # it was there as long as the step ran
    return {**state, "activations": max(0, live.peak - held[0] - state["gradients"]), **gaps(live, held, device)}


def forward_memory(config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, int]:
    """Bytes by part at the peak of an evaluation with everything on; `batch` counts guidance's halves."""
    with without_numbers() as live, torch.no_grad():
        model = fake_model(config.static(), device, dtype).eval()
        held = live.held()
        x = torch.zeros(batch, *config.sample_shape, dtype=dtype, device=device)
        model(x, torch.zeros(batch, device=device), torch.zeros(batch, dtype=torch.long, device=device)).float()
    weights = weight_bytes(config, dtype.itemsize)
    return {"weights": weights, "activations": live.peak - held[0], **gaps(live, held, device)}


def gaps(live: LiveBytes, held: tuple[int, int], device: torch.device) -> dict[str, int]:
    """Bytes of what a cpu's allocator does not give back, beside what was `held` before."""
    small = max(0, min(live.peak_small - held[1], live.peak - held[0]))
    return {"gaps between tensors": int(GAPS * small) if device.type == "cpu" else 0}


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Of tensors that are there."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def touch(tensors: Mapping[str, Tensor]) -> None:
    """Reads a number of every page, so that what a file only promises counts as memory that is held."""
    for tensor in tensors.values():
        if tensor.device.type == "cpu":
            tensor.detach().flatten()[:: 1024 // tensor.element_size() + 1].sum()
