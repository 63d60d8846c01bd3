"""One loop for pre-training, dynamic fine-tuning and the static control: only the objective differs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dydit_cli.artifacts.run import StepMetrics
from dydit_cli.data.dataset import Dataset
from dydit_cli.distributed import Distributed
from dydit_cli.model.backbone import Backbone, DynamicBackbone
from dydit_cli.model.lora import Lora, add_lora, merge_lora
from dydit_cli.profiling.calibrate import Calibration
from dydit_cli.train.batch import TrainingBatches
from dydit_cli.train.recipe import Recipe
from dydit_cli.train.router_init import FixedRouters, start_by_importance
from dydit_cli.train.run_folder import Saved, capture, restore
from dydit_cli.train.step import StepResult, Trainer

SKIPS_IN_A_ROW = 100


@dataclass(frozen=True)
class TrainResult:
    """`steps` is how many ran, those before a resumption included, and `images` how many they took; `interrupted` says that
    it was stopped before its last; `stopped` why the guard ended it; `main` that this is the main process; `unreadable` names
    images of the data that could not be read; `calibration` is what calibrating the result came to. `trained_parameters` are
    those that learn, of all `parameters`, the adapters' among them; `lora` is what was merged into the model's weights."""

    steps: int
    skipped: int
    interrupted: bool
    seconds: float
    last: StepMetrics | None
    images: int = 0
    stopped: str | None = None
    main: bool = True
    unreadable: str = ""
    calibration: Calibration | None = None
    parameters: int = 0
    trained_parameters: int = 0
    lora: Lora | None = None


def train(
    model: Backbone,
    data: Dataset,
    recipe: Recipe,
    *,
    teacher: Backbone | None = None,
    processes: Distributed | None = None,
    resume: Saved | None = None,
    save: Callable[[Saved], None] | None = None,
    on_step: Callable[[StepMetrics], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Trains `model` in place on its device and leaves the EMA weights in it, adapters merged, in evaluation mode.

    `teacher` is whose output is a target where the recipe has a weight for it, by default `model` as it begins.
    Deterministic under `recipe.train.seed` on cpu. `save` is given the state every `recipe.train.save_every` steps, at an
    interruption between steps (`should_stop`), when the guard ends the run after 100 skipped steps in a row, and at the end
    where the recipe keeps it; one that is given back as `resume`, with the same start of `model`, continues to the same end.
    `save` and `on_step` are called in the main one of the `processes`. Raises `DyditError` where the data do not fit the
    model.
    """
    data.check(model.config)
    processes = processes or Distributed()
    settings, device = recipe.train, model.device
    teacher = frozen(teacher or model) if settings.teacher_weight else None
    if resume is None and isinstance(model, DynamicBackbone) and recipe.routing.start == "importance":
        start_by_importance(model, recipe, data)
    fixed = FixedRouters(model, recipe, data) if isinstance(model, DynamicBackbone) else None
    if recipe.lora.rank is not None:
        add_lora(model, recipe.lora.rank, recipe.lora.alpha or recipe.lora.rank, settings.seed)
    trainer = Trainer(model, recipe, processes, teacher)
    learning = sum(p.numel() for _, p in model.trainable())
    parameters = model.num_parameters()
    batches = TrainingBatches(data, model.config, recipe, processes.part(settings.batch_size))
    facts: dict[str, Any] = {"skipped": 0, "skipped_in_a_row": 0, "seconds": 0.0}
    step = 0
    if resume is not None:
        restore(resume, trainer, batches)
        step, facts = resume.step, {name: resume.facts[name] for name in facts}
    began, metrics, stopped = time.perf_counter() - facts["seconds"], None, None

    def keep() -> None:
        if save and processes.main:
            save(capture(step, trainer, batches, {**facts, "seconds": time.perf_counter() - began}))

    while step < settings.steps and stopped is None:
        if processes.any(should_stop()):
            keep()
            break
        if fixed is not None:
            fixed.follow(recipe.routing.target(step))
        batch = batches(step)
        target = None if batch.ratios is None else batch.ratios[batch.group].mean().item()
        result = trainer.step(batch, step)
        step += 1
        facts["skipped"] += result.skipped
        facts["skipped_in_a_row"] = facts["skipped_in_a_row"] + 1 if result.skipped else 0
        metrics = describe_step(step, result, settings.lr, target, time.perf_counter() - began, device)
        if on_step and processes.main:
            on_step(metrics)
        if facts["skipped_in_a_row"] >= SKIPS_IN_A_ROW:
            stopped = (
                f"{SKIPS_IN_A_ROW} steps in a row had a gradient norm over {settings.grad_limit} or not finite; "
                "lower train.lr or raise train.grad_limit"
            )
            facts["skipped_in_a_row"] = 0  # whoever resumes it gives it another hundred
            keep()
        elif settings.keep_state if step == settings.steps else step % settings.save_every == 0:
            keep()

    trainer.ema.copy_to(model)
    lora = merge_lora(model) if recipe.lora.rank is not None else None
    if fixed is not None:
        fixed.follow(recipe.routing.target(max(0, step - 1)))  # not an average of the thresholds on the way
    if isinstance(model, DynamicBackbone) and model.config.budgets:
        model.set_flops_ratio(model.config.budgets[-1])
    model.eval().checkpointing = False
    return TrainResult(
        steps=step,
        skipped=facts["skipped"],
        interrupted=step < settings.steps and stopped is None,
        seconds=time.perf_counter() - began,
        last=metrics,
        images=step * settings.batch_size,
        stopped=stopped,
        main=processes.main,
        parameters=parameters,
        trained_parameters=learning,
        lora=lora,
    )


def frozen(model: Backbone) -> Backbone:
    """A copy of `model` as it is now, in evaluation mode, that learns nothing."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def describe_step(
    step: int, result: StepResult, lr: float, target: float | None, seconds: float, device: torch.device
) -> StepMetrics:
    """The figures of `step`, counted from 1."""
    means = result.means
    return StepMetrics(
        step=step,
        loss=means["loss"],
        mse=means["mse"],
        vb=means["vb"],
        complete_loss=means.get("complete"),
        teacher_loss=means.get("teacher"),
        cosine_loss=means.get("cosine"),
        block_loss=means.get("blocks"),
        ratio=means.get("ratio"),
        target=target,
        grad_norm=result.grad_norm,
        skipped=result.skipped,
        lr=lr * result.lr_factor,
        seconds=seconds,
        peak_memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )
