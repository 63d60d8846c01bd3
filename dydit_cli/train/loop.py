"""One loop for pre-training, dynamic fine-tuning and the static control: only the objective differs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from dydit_cli.diffusion.objective import loss_terms
from dydit_cli.diffusion.schedule import TRAIN_STEPS, Schedule, linear_schedule
from dydit_cli.errors import DyditError
from dydit_cli.flops.analytic import flops_ratio
from dydit_cli.model.dit import DiT
from dydit_cli.model.dydit import DyDiT, is_router
from dydit_cli.train.data import ImageData, batches
from dydit_cli.train.ema import Ema
from dydit_cli.train.recipe import Recipe, RoutingRecipe, TrainRecipe

SKIPS_IN_A_ROW = 100


@dataclass(frozen=True)
class StepMetrics:
    """One step's figures. Losses are batch means; `ratio` is the batch's FLOPs ratio under the training noise, and
    None for a static model; `seconds` is since the run began."""

    step: int
    loss: float
    mse: float
    vb: float
    complete_loss: float | None
    ratio: float | None
    target: float | None
    grad_norm: float
    skipped: bool
    lr: float
    seconds: float

    def to_dict(self) -> dict[str, float | int | bool | None]:
        return asdict(self)


@dataclass(frozen=True)
class TrainResult:
    """`steps` is how many ran; `interrupted` that it was asked to stop before its last."""

    steps: int
    skipped: int
    interrupted: bool
    seconds: float
    last: StepMetrics | None


@dataclass(frozen=True)
class Losses:
    """`total` is differentiated; the rest is for show."""

    total: Tensor
    mse: Tensor
    vb: Tensor
    complete: Tensor | None = None
    ratio: Tensor | None = None


def stratified_timesteps(batch: int, strata: int, generator: torch.Generator) -> Tensor:
    """(batch,) int64 timesteps, sample i drawn from stratum i mod `strata`, so that every batch covers the schedule."""
    edges = torch.linspace(0, TRAIN_STEPS, strata + 1).long()
    stratum = torch.arange(batch) % strata
    low, high = edges[stratum], edges[stratum + 1]
    return low + (torch.rand(batch, generator=generator) * (high - low)).long()


def drop_labels(y: Tensor, rate: float, null_class: int, generator: torch.Generator) -> Tensor:
    """Labels with a share of them replaced by the null class; drawn once, so that all passes over a batch agree."""
    drop = torch.rand(len(y), generator=generator) < rate
    return torch.where(drop, torch.full_like(y, null_class), y)


def flops_loss(ratio: Tensor, target: float, weight: float) -> Tensor:
    """w (ratio - target)^2 (paper, equation 5); `ratio` is the mean over a batch of mixed timesteps."""
    return weight * (ratio - target).square()


def compute_losses(
    model: DiT, schedule: Schedule, x0: Tensor, t: Tensor, y: Tensor, noise: Tensor, recipe: RoutingRecipe, step: int
) -> Losses:
    """The objective at `step`: diffusion loss, for a DyDiT plus w (mean ratio - target)^2 (paper, equation 5) and,
    in the complete-model phase, the diffusion loss of the same batch with every router on."""
    x_t = schedule.add_noise(x0, t, noise)
    zero = torch.zeros((), device=x0.device)
    if not isinstance(model, DyDiT):
        terms = loss_terms(schedule, model(x_t, t, y), x0, x_t, t, noise)
        return Losses(terms.loss.mean(), terms.mse.mean(), zero if terms.vb is None else terms.vb.mean())

    output, routing = model(x_t, t, y, return_routing=True)
    terms = loss_terms(schedule, output, x0, x_t, t, noise)
    # the mean over mixed timesteps comes before the square: that lets the model spend unevenly over time
    ratio = flops_ratio(routing, model.config).mean()
    total = terms.loss.mean() + flops_loss(ratio, recipe.target(step), recipe.weight)
    complete = None
    if step < recipe.complete_steps:
        complete = loss_terms(schedule, model(x_t, t, y, complete=True), x0, x_t, t, noise).loss.mean()
        total = total + complete
    return Losses(total, terms.mse.mean(), zero if terms.vb is None else terms.vb.mean(), complete, ratio)


def learning_rate(recipe: TrainRecipe, step: int) -> float:
    """The factor on every lr at `step`: a linear warm-up, then constant or a cosine to 0."""
    if step < recipe.lr_warmup_steps:
        return (step + 1) / recipe.lr_warmup_steps
    if recipe.lr_schedule == "constant":
        return 1.0
    done = (step - recipe.lr_warmup_steps) / max(1, recipe.steps - recipe.lr_warmup_steps)
    return 0.5 * (1 + torch.cos(torch.tensor(done * torch.pi)).item())


def make_optimizer(model: DiT, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW, the routers in a group of their own."""
    routers = [p for name, p in model.trainable() if is_router(name)]
    others = [p for name, p in model.trainable() if not is_router(name)]
    groups = [{"params": others, "lr": recipe.train.lr}]
    if routers:
        groups.append({"params": routers, "lr": recipe.routing.router_lr or recipe.train.lr})
    for group in groups:
        group["base_lr"] = group["lr"]
    return torch.optim.AdamW(groups, weight_decay=recipe.train.weight_decay, fused=True)


def train(
    model: DiT,
    data: ImageData,
    recipe: Recipe,
    *,
    on_step: Callable[[StepMetrics], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Trains `model` in place on its device and leaves the EMA weights in it, in evaluation mode.

    Deterministic under `recipe.train.seed` on cpu. Raises `DyditError` where the data do not fit the model, or after
    100 skipped steps in a row; an interruption between steps (`should_stop`) keeps what has been learned.
    """
    data.check(model.config)
    settings, device = recipe.train, model.pos_embed.device
    generator = torch.Generator().manual_seed(settings.seed)
    torch.manual_seed(settings.seed)  # the Gumbel noise
    schedule = linear_schedule()
    optimizer, ema = make_optimizer(model, recipe), Ema(model, settings.ema_decay)
    parameters = [p for _, p in model.trainable()]
    stream = batches(data, settings.batch_size, generator)
    model.train()

    start, metrics, skipped, skipped_in_a_row, step = time.perf_counter(), None, 0, 0, 0
    while step < settings.steps and not should_stop():
        if isinstance(model, DyDiT):
            left = settings.steps - step
            fade = recipe.routing.noise_off_steps
            model.gumbel_noise = min(1.0, (left - 1) / fade) if fade else 1.0
        factor = learning_rate(settings, step)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

        x0, y = next(stream)
        t = stratified_timesteps(len(y), settings.timestep_strata, generator)
        y = drop_labels(y, settings.label_dropout, model.config.null_class, generator)
        noise = torch.randn(x0.shape, generator=generator)
        x0, t, y, noise = (tensor.to(device) for tensor in (x0, t, y, noise))
        losses = compute_losses(model, schedule, x0, t, y, noise, recipe.routing, step)

        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]).item()
        skip = not norm < (settings.grad_limit or float("inf"))  # a NaN is over every limit
        if skip:
            skipped, skipped_in_a_row = skipped + 1, skipped_in_a_row + 1
        else:
            optimizer.step()
            ema.update(model)
            skipped_in_a_row = 0

        metrics = StepMetrics(
            step=step + 1,
            loss=losses.total.item(),
            mse=losses.mse.item(),
            vb=losses.vb.item(),
            complete_loss=None if losses.complete is None else losses.complete.item(),
            ratio=None if losses.ratio is None else losses.ratio.item(),
            target=recipe.routing.target(step) if isinstance(model, DyDiT) else None,
            grad_norm=norm,
            skipped=skip,
            lr=settings.lr * factor,
            seconds=time.perf_counter() - start,
        )
        step += 1
        if on_step:
            on_step(metrics)
        if skipped_in_a_row >= SKIPS_IN_A_ROW:
            raise DyditError(
                f"{SKIPS_IN_A_ROW} steps in a row had a gradient norm over {settings.grad_limit} or not finite; "
                "lower the learning rate or raise train.grad_limit"
            )

    ema.copy_to(model)
    model.eval()
    return TrainResult(step, skipped, step < settings.steps, time.perf_counter() - start, metrics)
