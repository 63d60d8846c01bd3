"""A training run on disk: a checkpoint in, a folder out with the model, its metrics and the resolved recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dydit_cli.artifacts.run import RECIPE_FILE, StepMetrics
from dydit_cli.checkpoint import lineage
from dydit_cli.checkpoint.checkpoint import Checkpoint, build_model, with_classes
from dydit_cli.checkpoint.native import write_into
from dydit_cli.checkpoint.read import CheckpointLike, LoadOptions, read
from dydit_cli.data.imagefolder import describe_skipped
from dydit_cli.data.load import BUNDLED, load_data, split_name
from dydit_cli.devices import pick_device
from dydit_cli.distributed import init_distributed
from dydit_cli.errors import DyditError
from dydit_cli.model.config import DiTConfig, DyDiTConfig
from dydit_cli.model.dit import DiT
from dydit_cli.provenance import made_with
from dydit_cli.train.loop import TrainResult, train
from dydit_cli.train.recipe import Recipe, read_recipe, recipe_from_dict, with_settings, with_steps
from dydit_cli.train.run_folder import RunFolder, RunSpec, Saved, StateFolder


def pretrain(recipe: Recipe, out: str | Path, **options: Any) -> TrainResult:
    """Trains the recipe's static model from random weights into the folder `out`; options as in `run_training`."""
    return run_training(random_start(recipe), out, **options)


def random_start(recipe: Recipe) -> RunSpec:
    """Training the recipe's static model from random weights under its seed; raises `DyditError` where it has none."""
    if recipe.model is None:
        raise DyditError("the recipe has no [model] section; pretrain needs one")
    torch.manual_seed(recipe.train.seed)
    start = Checkpoint.of(build_model(DiTConfig(**recipe.model.model_dump())), lineage=[])
    return RunSpec("pretrain", start, recipe, {})


def finetune(
    checkpoint: CheckpointLike,
    out: str | Path,
    *,
    flops_ratio: float | None = None,
    steps: int | None = None,
    data: str | None = None,
    recipe: str | Path | Recipe | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    num_classes: int | None = None,
    reading: LoadOptions = LoadOptions(),
    **options: Any,
) -> TrainResult:
    """Fine-tunes a checkpoint into the folder `out`: a DyDiT to `flops_ratio`, a static model as it is (the control).

    Without a `recipe` the data set's own is taken, and without `data` the set that the checkpoint was trained on. `steps`
    stretches the recipe's phases; `settings` replaces single values, such as {"train.lr": 1e-4}; `num_classes`
    re-initialises the label table, keeping the null row; further options as in `run_training`. The same call continues a
    run that was interrupted.
    """
    start = read(checkpoint, reading)
    resolved = resolve_recipe(
        recipe, flops_ratio=flops_ratio, steps=steps, data=data, settings=settings, trained_on=start.trained_on
    )
    return run_training(tuned_start(start, resolved, reading, num_classes), out, **options)


def tuned_start(checkpoint: CheckpointLike, recipe: Recipe, reading: LoadOptions, num_classes: int | None) -> RunSpec:
    """What fine-tuning begins with, and how to come by it again."""
    start = read(checkpoint, reading)
    # a relative path would be another one's elsewhere; a hub id or a bundled name is the same everywhere
    path = str(Path(start.path).resolve()) if start.path is not None and Path(start.path).exists() else start.path
    source = {"checkpoint": path, "reading": asdict(reading), "num_classes": num_classes}
    if num_classes is not None:
        start = with_classes(start, num_classes, recipe.train.seed)
    if recipe.routing.tokens == "layers" and isinstance(start.config, DyDiTConfig):
        start = replace(start, config=replace(start.config, token_routing="layers"))
    return RunSpec("finetune", start, recipe, source)


def resume(folder: str | Path, checkpoint: CheckpointLike | None = None, **options: Any) -> TrainResult:
    """Continues the unfinished run in `folder` to the end that it would have had; options as in `run_training`.

    `checkpoint` is what it began with, where that has moved. Raises `DyditError` where there is no unfinished run, or the
    start is not to be found or another one.
    """
    return run_training(unfinished(folder, checkpoint), folder, **options)


def unfinished(folder: str | Path, checkpoint: CheckpointLike | None = None) -> RunSpec:
    """What the unfinished run in `folder` was asked for."""
    folder = Path(folder)
    there = StateFolder(folder).asked()
    try:
        values = (folder / RECIPE_FILE).read_text(encoding="utf-8")
        recipe = recipe_from_dict(json.loads(values), str(folder / RECIPE_FILE))
    except (OSError, ValueError) as error:
        raise DyditError(f"{folder / RECIPE_FILE}: cannot be read: {error}; start anew with --force") from None
    if there.get("action") == "pretrain":
        return random_start(recipe)
    source = there["source"]
    checkpoint = checkpoint or source["checkpoint"]
    if checkpoint is None:
        raise DyditError(f"{folder}: began with a model in memory; give that checkpoint again")
    return tuned_start(checkpoint, recipe, LoadOptions(**source["reading"]), source["num_classes"])


def resolve_recipe(
    recipe: str | Path | Recipe | None,
    *,
    flops_ratio: float | None = None,
    steps: int | None = None,
    data: str | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    trained_on: str | None = None,
) -> Recipe:
    """The recipe after everything that was asked for on top of it; without one, that of `data` or of what the model was
    `trained_on`. Raises `DyditError` for what is out of range."""
    if flops_ratio is not None and not 0 < flops_ratio <= 1:
        raise DyditError(f"FLOPs ratio {flops_ratio}; it must be over 0 and at most 1")
    if steps is not None and steps < 1:
        raise DyditError(f"{steps} steps; train at least 1")
    resolved = recipe if isinstance(recipe, Recipe) else read_recipe(recipe or default_recipe(data or trained_on))
    if steps is not None:
        resolved = with_steps(resolved, steps)
    asked = {} if flops_ratio is None else {"routing.flops_ratio": flops_ratio}
    if data is not None:
        asked["data"] = data  # type: ignore[assignment]
    return with_settings(with_settings(resolved, asked), settings)


def default_recipe(data: str | None) -> str:
    """The recipe to fine-tune with on a data set where none is named."""
    kind, _ = split_name(data or "digits")
    if kind not in BUNDLED:
        raise DyditError(f"data set {data} has no recipe of its own; name one with --recipe, see the folder recipes/")
    return f"{kind}/finetune"


def run_training(
    asked: RunSpec,
    out: str | Path,
    *,
    device: str = "auto",
    force: bool = False,
    on_begin: Callable[[int], None] = lambda step: None,
    on_note: Callable[[str], None] = lambda text: None,
    on_step: Callable[[StepMetrics], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Trains what was `asked` and writes config.json, model.safetensors (EMA weights), metrics.jsonl and recipe.json.

    An interrupted run is saved like a finished one, its lineage saying how many steps it took, and its states stay beside
    it; the same call again continues it, to the same bits on a cpu. `on_begin` hears the step at which this starts.
    Under a launcher the processes share each batch, and the main one alone calls `on_` functions. Raises `DyditError`,
    after saving, where the gradient guard ended the run.
    """
    folder, recipe, start = RunFolder(Path(out)), asked.recipe, asked.start
    with init_distributed(device) as team:
        place = pick_device(device)
        folder.check(force)
        data = load_data(recipe.data, start.config)
        data.check(start.config)
        try:
            saved = folder.open(asked, force, team, on_note)
            model = start.build().to(place).float()
            if team.main:
                on_begin(0 if saved is None else saved.step)
            with folder.log(team.main) as log:

                def record(metrics: StepMetrics) -> None:
                    log.write(metrics)
                    if on_step:
                        on_step(metrics)

                def save(state: Saved) -> None:
                    log.settle()
                    folder.states.save(state, recipe.train.keep)

                result = train(model, data, recipe, team=team, resume=saved, save=save, on_step=record, should_stop=should_stop)
            if team.main:
                write_model(model, asked, result, folder.path)
                if not result.interrupted and result.stopped is None:
                    folder.states.remove()
        except SafetensorError as error:
            raise DyditError(f"{out}: cannot be written: {error}; make room and run the same command again") from None
        except OSError as error:
            raise DyditError(f"{out}: cannot be written: {error.strerror or error}; choose another place") from None
        team.wait()
    if result.stopped is not None:
        raise DyditError(f"{result.stopped}; step {result.steps} is saved in {out}")
    return replace(result, unreadable=describe_skipped(data.skipped))


def write_model(model: DiT, asked: RunSpec, result: TrainResult, out: Path) -> None:
    """The trained model as a checkpoint in the run's folder."""
    recipe, start, dynamic = asked.recipe, asked.start, asked.start.config.kind == "dydit"
    kinds = {kind: getattr(recipe.routing, kind) for kind in ("width", "tokens")} if dynamic else {}
    with made_with(StateFolder(out).asked().get("command")):  # the one that began the run, whichever one ended it
        step = lineage.entry(
            asked.action,
            start,
            data=recipe.data,
            steps=result.steps,
            batch_size=recipe.train.batch_size,
            seed=recipe.train.seed,
            **({"flops_ratio": recipe.routing.flops_ratio} if dynamic else {}),
            **{kind: how for kind, how in kinds.items() if how != "learned"},
        )
    write_into(Checkpoint.of(model, [*start.lineage, step], like=start), out)
