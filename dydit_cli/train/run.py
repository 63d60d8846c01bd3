"""A training run on disk: a checkpoint in, a folder out with the model, its metrics and the resolved recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dydit_cli.checkpoint import lineage
from dydit_cli.checkpoint.checkpoint import Checkpoint, build_model
from dydit_cli.checkpoint.classes import with_classes
from dydit_cli.checkpoint.native import write_into
from dydit_cli.checkpoint.read import Reading, Source, read
from dydit_cli.devices import pick_device
from dydit_cli.errors import DyditError
from dydit_cli.files import check_output, write_json
from dydit_cli.model.config import DiTConfig
from dydit_cli.train.data import DATASETS, load_data
from dydit_cli.train.loop import StepMetrics, TrainResult, train
from dydit_cli.train.recipe import Recipe, read_recipe, with_settings, with_steps

METRICS_FILE, RECIPE_FILE = "metrics.jsonl", "recipe.json"


def pretrain(recipe: Recipe, out: str | Path, **options: Any) -> TrainResult:
    """Trains the recipe's static model from random weights into the folder `out`; options as in `run_training`."""
    if recipe.model is None:
        raise DyditError("the recipe has no [model] section; pretrain needs one")
    torch.manual_seed(recipe.train.seed)
    start = Checkpoint.of(build_model(DiTConfig(**recipe.model.model_dump())), lineage=[])
    return run_training(start, recipe, out, action="pretrain", **options)


def finetune(
    checkpoint: Source,
    out: str | Path,
    *,
    flops_ratio: float | None = None,
    steps: int | None = None,
    data: str | None = None,
    recipe: str | Path | Recipe | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    num_classes: int | None = None,
    reading: Reading = Reading(),
    **options: Any,
) -> TrainResult:
    """Fine-tunes a checkpoint into the folder `out`: a DyDiT to `flops_ratio`, a static model as it is (the control).

    Without a `recipe` the data set's own is taken. `steps` stretches the recipe's phases; `settings` replaces single
    values, such as {"train.lr": 1e-4}; `num_classes` re-initialises the label table, keeping the null row;
    further options as in `run_training`.
    """
    resolved = resolve_recipe(recipe, flops_ratio=flops_ratio, steps=steps, data=data, settings=settings)
    start = read(checkpoint, reading)
    if num_classes is not None:
        start = with_classes(start, num_classes, resolved.train.seed)
    return run_training(start, resolved, out, action="finetune", **options)


def resolve_recipe(
    recipe: str | Path | Recipe | None,
    *,
    flops_ratio: float | None = None,
    steps: int | None = None,
    data: str | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
) -> Recipe:
    """The recipe after everything that was asked for on top of it; raises `DyditError` for what is out of range."""
    if flops_ratio is not None and not 0 < flops_ratio <= 1:
        raise DyditError(f"FLOPs ratio {flops_ratio}; it must be over 0 and at most 1")
    if steps is not None and steps < 1:
        raise DyditError(f"{steps} steps; train at least 1")
    resolved = recipe if isinstance(recipe, Recipe) else read_recipe(recipe or default_recipe(data))
    if steps is not None:
        resolved = with_steps(resolved, steps)
    asked = {} if flops_ratio is None else {"routing.flops_ratio": flops_ratio}
    if data is not None:
        asked["data"] = data  # type: ignore[assignment]
    return with_settings(with_settings(resolved, asked), settings)


def default_recipe(data: str | None) -> str:
    """The recipe to fine-tune with on a data set where none is named."""
    if data not in (None, *DATASETS):
        raise DyditError(f"no data set {data!r}; choose one of {', '.join(DATASETS)}")
    return f"{data or 'digits'}/finetune"


def run_training(
    start: Checkpoint,
    recipe: Recipe,
    out: str | Path,
    *,
    action: str,
    device: str = "auto",
    force: bool = False,
    on_step: Callable[[StepMetrics], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Trains from `start` and writes config.json, model.safetensors (EMA weights), metrics.jsonl and recipe.json.

    An interrupted run is saved like a finished one, its lineage saying how many steps it took.
    """
    out = check_output(out, force)
    data = load_data(recipe.data)
    data.check(start.config)
    model = start.build().to(pick_device(device)).float()
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / RECIPE_FILE, recipe.model_dump())
        with open(out / METRICS_FILE, "w", encoding="utf-8") as log:

            def record(metrics: StepMetrics) -> None:
                log.write(json.dumps(metrics.to_dict()) + "\n")
                if on_step:
                    on_step(metrics)

            result = train(model, data, recipe, on_step=record, should_stop=should_stop)
    except OSError as error:
        raise DyditError(f"{out}: cannot be written: {error.strerror or error}; choose another place") from None
    step = lineage.entry(
        action,
        start,
        data=recipe.data,
        steps=result.steps,
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
        **({"flops_ratio": recipe.routing.flops_ratio} if start.config.kind == "dydit" else {}),
    )
    write_into(Checkpoint.of(model, [*start.lineage, step], like=start), out)
    return result
