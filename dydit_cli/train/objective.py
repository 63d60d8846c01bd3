"""What a model is trained on: per-sample losses of a batch, and how they add up to one number.

The FLOPs term w (r - lambda)^2 squares a mean r over the *global* batch, of which a process or a micro-batch sees a part.
Its gradient is 2 w (r - lambda) grad r, which is linear in the samples once r is a number: so r is found first, over all
processes and micro-batches, and every part then differentiates 2 w (r - lambda) times its own share of r. A model of a range of
ratios has one such term for each ratio in the batch, weighed by its samples.

Legend: B samples of a part, n of them seen by the complete model, C channels, S size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from dydit_cli.diffusion.process import process_of
from dydit_cli.model.backbone import Backbone, DynamicBackbone
from dydit_cli.model.macs import flops_ratio
from dydit_cli.model.routing import Routing
from dydit_cli.train.batch import Batch
from dydit_cli.train.recipe import TrainRecipe


@dataclass(frozen=True)
class SampleLosses:
    """Per sample, each (B,), but `complete` (n,); squared noise errors are weighted by timestep where the recipe has
    `min_snr`. `ratio` is the FLOPs ratio under the batch's noise, and None for a static model; `teacher` the squared
    distance to the teacher's prediction, and `blocks` that to its blocks' outputs (`block_distance`); `cosine` what
    `cosine_distance` says of it; `complete` the complete model's diffusion loss, the cosine's included."""

    mse: Tensor
    vb: Tensor
    ratio: Tensor | None = None
    complete: Tensor | None = None
    teacher: Tensor | None = None
    cosine: Tensor | None = None
    blocks: Tensor | None = None

    def sums(self) -> dict[str, Tensor]:
        """Each one's sum over the samples, without its graph; those that are None are left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.detach().float().sum() for name, value in values.items() if value is not None}


class Objective(nn.Module):
    """`model` and its losses as one module, so that what shares gradients between processes wraps a single forward.

    `teacher` is a frozen model whose output is a target; of one with routers it is the complete model's.
    """

    def __init__(self, model: Backbone, recipe: TrainRecipe, teacher: Backbone | None = None) -> None:
        super().__init__()
        self.model = model
        self.process = process_of(model.config)
        self._weigh, self._cosine_weight = recipe.min_snr, recipe.cosine_weight
        self._watched = () if teacher is None or not recipe.block_weight else (model, teacher)  # whose blocks are compared
        self._bf16 = recipe.precision == "bf16"
        # in a tuple, so that this module has each weight once, and none of the teacher's
        self._others: tuple[Callable[..., Any], Backbone | None] = (torch.compile(model) if recipe.compile else model, teacher)

    def forward(self, batch: Batch) -> SampleLosses:
        """The losses of one part of a batch, on the model's device."""
        run, known = self._others
        t, y = batch.t, batch.y
        x_t = self.process.add_noise(batch.x0, t, batch.noise)
        for watched in self._watched:
            watched.outputs = []
        output, ratio = self._output(x_t, batch)
        mse, vb, cosine = self._terms(output, batch.x0, x_t, t, batch.noise)
        teacher = complete = blocks = None
        if known is not None:
            with torch.no_grad():
                target = self._autocast(known, x_t, t, y, **({"complete": True} if known.config.dynamic else {}))
            teacher = self.process.distance(output, target, x_t.shape[-3], t, self._weigh)
        if self._watched:
            blocks = block_distance(*(watched.outputs or [] for watched in self._watched))
            for watched in self._watched:
                watched.outputs = None
        if batch.complete is not None and bool(batch.complete.any()):
            # all of them stay as they are: an index would copy them
            samples = slice(None) if bool(batch.complete.all()) else batch.complete.nonzero().squeeze(1).to(t.device)
            x0, x_t, t, noise = (tensor[samples] for tensor in (batch.x0, x_t, t, batch.noise))
            everything = self._autocast(run, x_t, t, y[samples], complete=True)
            of_complete = self._terms(everything, x0, x_t, t, noise)
            complete = of_complete[0] + of_complete[1]
            if of_complete[2] is not None:
                complete = complete + self._cosine_weight * of_complete[2]
        return SampleLosses(mse, vb, ratio, complete, teacher, cosine, blocks)

    @torch.no_grad()
    def ratio(self, batch: Batch) -> Tensor:
        """(B,) the FLOPs ratios that `forward` will find, since the noise is given; nothing is kept for a backward pass."""
        _, ratio = self._output(self.process.add_noise(batch.x0, batch.t, batch.noise), batch)
        assert ratio is not None
        return ratio

    def _terms(self, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The error of the prediction, the variational term and, where it has a weight, the cosine's, each (B,)."""
        terms = self.process.losses(output, x0, x_t, t, noise, self._weigh)
        vb = torch.zeros_like(terms.mse) if terms.vb is None else terms.vb
        cosine = cosine_distance(output, self.process.target(x0, t, noise)) if self._cosine_weight else None
        return terms.mse, vb, cosine

    def _output(self, x_t: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if not isinstance(self.model, DynamicBackbone):
            return self._autocast(self._others[0], x_t, batch.t, batch.y), None
        if self.model.config.budgets:
            assert batch.ratios is not None
            assert batch.group is not None
            ratios = batch.ratios[batch.group]  # B
            self.model.set_routers(ratios.where(ratios < 1, torch.inf))
        with self._autocasting(x_t):
            output, routing = self._others[0](x_t, batch.t, batch.y, return_routing=True, gate_noise=batch.gates)
        # zeros and ones are exact in bf16, and their means are not
        masks = Routing(routing.heads.float(), routing.groups.float(), routing.tokens.float())
        return output.float(), flops_ratio(masks, self.model.config)

    def _autocast(self, model: Callable[..., Any], x_t: Tensor, t: Tensor, y: Tensor, **more: bool) -> Tensor:
        with self._autocasting(x_t):
            output: Tensor = model(x_t, t, y, **more)
        return output.float()

    def _autocasting(self, like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, torch.bfloat16, enabled=self._bf16)


def block_distance(outputs: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """(B,) the mean over blocks of the squared distance of their outputs to the teacher's, relative to the mean square of
    those; all B N C.

    In a model with fewer blocks, such as one that was pruned in depth, each is compared with the teacher's block at the same
    share of the depth.
    """
    distances = []
    for i, h in enumerate(outputs):
        known = teacher[(i + 1) * len(teacher) // len(outputs) - 1].float()
        error, size = ((x.square().flatten(1).mean(dim=1)) for x in (h.float() - known, known))  # each (B,)
        distances.append(error / size)
    return torch.stack(distances).mean(dim=0)


def cosine_distance(output: Tensor, target: Tensor) -> Tensor:
    """(B,) the mean over positions of 1 - the cosine between a prediction's channels and the target's (LightningDiT).

    output: B Cout S S, of which the first C channels are the prediction; target: B C S S. A vector shorter than 0.01 counts as
    so long: a fresh model predicts zeros, at which the cosine's gradient has no bound.
    """
    channels = -3
    prediction = output.narrow(channels, 0, target.shape[channels])
    return (1 - nn.functional.cosine_similarity(prediction, target, dim=channels, eps=0.01)).flatten(1).mean(dim=1)


@dataclass(frozen=True)
class LossWeights:
    """How a step's losses are weighed: `samples` and `complete_samples` are those of the global batch, `flops` is the FLOPs
    term's weight; `complete`, `teacher`, `cosine`, `blocks` and `data` (the error's own) are the weights of means."""

    samples: int
    complete_samples: int
    flops: float
    complete: float
    teacher: float
    cosine: float = 0.0
    blocks: float = 0.0
    data: float = 1.0

    def part(self, losses: SampleLosses, excess: Tensor | None) -> Tensor:
        """A scalar whose sum over all parts has the gradient of the global batch's loss; `excess` (B,) is by how much the mean
        ratio of a sample's group, over the global batch, is more than it is to be."""
        total = (self.data * losses.mse + losses.vb).sum() / self.samples
        if losses.ratio is not None and excess is not None:
            total = total + 2 * self.flops * (excess.detach() * losses.ratio).sum() / self.samples
        if losses.complete is not None:
            total = total + self.complete * losses.complete.sum() / self.complete_samples
        if losses.teacher is not None:
            total = total + self.teacher * losses.teacher.sum() / self.samples
        for weight, values in ((self.cosine, losses.cosine), (self.blocks, losses.blocks)):
            if values is not None:
                total = total + weight * values.sum() / self.samples
        return total

    def means(self, sums: dict[str, float], squared_excess: float | None) -> dict[str, float]:
        """The global batch's means, and their `loss`, from its sums and the mean of the squared excess over its samples."""
        counts = {"complete": self.complete_samples}
        means = {name: value / counts.get(name, self.samples) for name, value in sums.items()}
        loss = self.data * means["mse"] + means["vb"]
        loss += self.complete * means.get("complete", 0.0) + self.teacher * means.get("teacher", 0.0)
        loss += self.cosine * means.get("cosine", 0.0) + self.blocks * means.get("blocks", 0.0)
        if squared_excess is not None:
            loss += self.flops * squared_excess
        return {**means, "loss": loss}
