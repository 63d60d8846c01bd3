"""One optimiser step over a global batch, whatever number of processes and micro-batches it is cut into."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from dydit_cli.distributed import Distributed
from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import Backbone, DynamicBackbone
from dydit_cli.model.lora import is_adapter
from dydit_cli.train.batch import Batch, complete_count
from dydit_cli.train.muon import Muon
from dydit_cli.train.objective import LossWeights, Objective, SampleLosses
from dydit_cli.train.recipe import Recipe, TrainRecipe


class Ema:
    """Averages every parameter of a model that learns, by `decay` per step.

    The first steps use (1 + n) / (10 + n), so that a short run is not left with its initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in _learning(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = [p.detach() for _, p in _learning(model)]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)

    def copy_to(self, model: nn.Module) -> None:
        """Loads the averaged weights into `model`, whose tables stay its own."""
        model.load_state_dict({**model.state_dict(), **self.weights}, strict=True)


def _learning(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


@dataclass(frozen=True)
class StepResult:
    """What a step came to: means over the global batch by name, `loss` among them, the gradient's norm, whether the guard
    skipped the step, and the factor on the learning rates."""

    means: dict[str, float]
    grad_norm: float
    skipped: bool
    lr_factor: float


class Trainer:
    """A model in training with its optimiser and its EMA.

    `teacher` is the frozen model that the recipe's teacher weight asks for. Raises `DyditError` where processes and
    micro-batches do not divide the batch.
    """

    def __init__(self, model: Backbone, recipe: Recipe, team: Distributed, teacher: Backbone | None = None) -> None:
        parts = team.count * recipe.train.accumulation
        if recipe.train.batch_size % parts:
            raise DyditError(
                f"train.batch_size {recipe.train.batch_size} cannot be cut into {team.count} processes x "
                f"{recipe.train.accumulation} micro-batches of one size; make it a multiple of {parts}"
            )
        self.model, self.recipe, self.team = model, recipe, team
        self.device = model.device
        model.checkpointing = recipe.train.gradient_checkpointing
        model.train()
        self.optimizer, self.ema = make_optimizer(model, recipe), Ema(model, recipe.train.ema_decay)
        self.objective = Objective(model, recipe.train, teacher)
        self._shared = team.wrap(self.objective)
        self._parameters = [p for _, p in model.trainable()]

    def step(self, batch: Batch, step: int) -> StepResult:
        """Trains on this process's part of the global batch of `step`, counted from 0; every process gets the same back."""
        factor = learning_rate(self.recipe.train, step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        means = self._backward(batch, self._weights(step))
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        # every process must decide alike, also where their last bits differ
        norm_value = self.team.sum(norm.detach()).item() / self.team.count
        skip = not norm_value < (self.recipe.train.grad_limit or float("inf"))  # a NaN is over every limit
        if not skip:
            self.optimizer.step()
            self.ema.update(self.model)
        return StepResult(means, norm_value, skip, factor)

    def _backward(self, batch: Batch, weights: LossWeights) -> dict[str, float]:
        parts = [part.to(self.device) for part in self._parts(batch)]
        dynamic = isinstance(self.model, DynamicBackbone)
        excess: Tensor | None = None
        squared: float | None = None
        if dynamic and len(parts) > 1:
            # The first part's gradient needs the mean ratios of all parts. Keeping every graph until then would undo what
            # accumulation is for; a pass without graphs costs a third of the dynamic pass's time and no memory.
            excess, squared = self._excess(batch, parts, [self.objective.ratio(part) for part in parts])
        sums: dict[str, Tensor] = {}
        for i, part in enumerate(parts):
            with self.team.unshared(self._shared) if i < len(parts) - 1 else nullcontext():
                losses = self._shared(part)
                if dynamic and excess is None:
                    excess, squared = self._excess(batch, parts, [losses.ratio.detach()])
                # times the processes, over which the gradients are averaged
                (weights.part(losses, None if excess is None else excess[part.group]) * self.team.count).backward()
            for name, value in losses.sums().items():
                sums[name] = sums[name] + value if name in sums else value
        return weights.means(self._over_all(sums), squared)

    def _parts(self, batch: Batch) -> list[Batch]:
        size = len(batch) // self.recipe.train.accumulation
        return [batch.select(slice(start, start + size)) for start in range(0, len(batch), size)]

    def _excess(self, batch: Batch, parts: list[Batch], ratios: list[Tensor]) -> tuple[Tensor, float]:
        """(G,) by how much the mean ratio of each group of the global batch is more than it is to be, and the mean of its
        square over the samples; ratios: (B,) a part."""
        assert batch.ratios is not None
        sums = torch.zeros(2, len(batch.ratios), device=self.device, dtype=ratios[0].dtype)  # of the ratios, and of samples
        for part, ratio in zip(parts, ratios, strict=True):
            assert part.group is not None
            sums.index_add_(1, part.group, torch.stack([ratio, torch.ones_like(ratio)]))
        total, samples = self.team.sum(sums)
        excess = total / samples.clamp(min=1) - batch.ratios.to(total)
        return excess, (excess.square() * samples).sum().item() / self.recipe.train.batch_size

    def _over_all(self, sums: dict[str, Tensor]) -> dict[str, float]:
        # a process whose part the complete pass does not see has no such sum
        names = [field.name for field in fields(SampleLosses)]
        there = torch.stack([sums[name] if name in sums else sums["mse"].new_zeros(()) for name in names])
        has = torch.tensor([float(name in sums) for name in names], dtype=there.dtype, device=there.device)
        values, counts = self.team.sum(torch.stack([there, has])).tolist()
        return {name: value for name, value, count in zip(names, values, counts, strict=True) if count}

    def _weights(self, step: int) -> LossWeights:
        size, routing = self.recipe.train.batch_size, self.recipe.routing
        return LossWeights(
            samples=size,
            complete_samples=complete_count(size, routing) if routing.complete_steps else size,
            flops=routing.weight,
            complete=float(routing.complete_every),  # the rarer, the heavier: the mean over steps stays
            teacher=self.recipe.train.teacher_weight,
            cosine=self.recipe.train.cosine_weight,
            blocks=self.recipe.train.block_weight,
            data=self.recipe.train.data_weight,
        )


def learning_rate(recipe: TrainRecipe, step: int) -> float:
    """The factor on every lr at `step`: a linear warm-up, then constant or a cosine to 0."""
    if step < recipe.lr_warmup_steps:
        return (step + 1) / recipe.lr_warmup_steps
    if recipe.lr_schedule == "constant":
        return 1.0
    done = (step - recipe.lr_warmup_steps) / max(1, recipe.steps - recipe.lr_warmup_steps)
    return 0.5 * (1 + torch.cos(torch.tensor(done * torch.pi)).item())


def make_optimizer(model: Backbone, recipe: Recipe) -> torch.optim.AdamW:
    """The recipe's, routers and adapters in groups of their own; Muon's matrices are those of the blocks."""
    muon = recipe.train.optimizer == "muon"
    parts: dict[str, list[nn.Parameter]] = {"others": [], "matrices": [], "routers": [], "adapters": []}
    for name, p in model.trainable():
        matrix = muon and p.ndim == 2 and model.config.blocks.match(name) is not None
        own = "routers" if model.config.is_router(name) else "adapters" if is_adapter(name) else None
        parts[own or ("matrices" if matrix else "others")].append(p)
    lr = {"routers": recipe.routing.router_lr or recipe.train.lr, "adapters": recipe.lora.lr or recipe.train.lr}
    groups = [
        {"params": members, "lr": lr.get(part, recipe.train.lr), "orthogonal": part == "matrices"}
        for part, members in parts.items()
        if members
    ]
    for group in groups:
        group["base_lr"] = group["lr"]
    return (Muon if muon else torch.optim.AdamW)(groups, weight_decay=recipe.train.weight_decay, fused=True)
