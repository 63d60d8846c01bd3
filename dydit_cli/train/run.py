"""A training run on disk: a checkpoint in, a folder out with the model, its metrics and the resolved recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from dydit_cli.artifacts.run import StepMetrics
from dydit_cli.checkpoint import adapter, lineage, native
from dydit_cli.checkpoint.budgets import with_range
from dydit_cli.checkpoint.checkpoint import Checkpoint, with_classes
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import CheckpointLike, read
from dydit_cli.data.dataset import Dataset
from dydit_cli.data.imagefolder import describe_skipped
from dydit_cli.data.load import default_recipe, find_source, load_data
from dydit_cli.devices import pick_device
from dydit_cli.distributed import init_distributed
from dydit_cli.errors import DyditError
from dydit_cli.files import locked
from dydit_cli.model.backbone import Backbone
from dydit_cli.model.config import ModelConfig, RoutedConfig
from dydit_cli.model.families import build_model, families, family_of
from dydit_cli.model.lora import Lora
from dydit_cli.profiling.calibrate import calibrate, measure_range
from dydit_cli.provenance import made_with
from dydit_cli.train.loop import TrainResult, train
from dydit_cli.train.recipe import ModelRecipe, Recipe, flat, for_model, read_recipe, with_settings, with_steps
from dydit_cli.train.run_folder import RunFolder, RunSpec, Saved
from dydit_cli.train.tracking import check_tracker, tracking

# of a configuration: what a teacher has in common with whom it teaches
TAUGHT = ("input_size", "in_channels", "num_classes", "path", "prediction", "noise_at")


def pretrain(recipe: Recipe, out: str | Path, **options: Any) -> TrainResult:
    """Trains the recipe's static model from random weights into the folder `out`; options as in `run_training`."""
    return run_training(random_start(recipe), out, **options)


def random_start(recipe: Recipe) -> RunSpec:
    """Training the recipe's static model from random weights under its seed; raises `DyditError` where it has none."""
    if recipe.model is None:
        raise DyditError("the recipe has no [model] section; pretrain needs one")
    if recipe.lora.rank is not None:
        raise DyditError("lora.rank: adapters are for a trained model, and pretrain begins with random weights; use finetune")
    config = config_of(recipe.model)
    torch.manual_seed(recipe.train.seed)
    start = Checkpoint.of(build_model(config), lineage=[])
    return RunSpec("pretrain", start, for_model(recipe, start.config), {}, teacher_of(recipe, start))


def config_of(model: ModelRecipe) -> ModelConfig:
    """The static model that a recipe describes; raises `DyditError` for an unknown family or key, and sizes that do not fit."""
    values = model.model_dump()
    family = families().get(values.pop("family"))
    if family is None:
        raise DyditError(f"'model.family': {model.family!r} is no family; choose one of {', '.join(families())}")
    foreign = sorted(values.keys() - {f.name for f in fields(family.static_config)})
    if foreign:
        known = ", ".join(f.name for f in fields(family.static_config))
        raise DyditError(f"'model.{foreign[0]}': a {family.static_config.title} has none; it has {known}")
    return family.static_config(**values)


def finetune(
    checkpoint: CheckpointLike,
    out: str | Path,
    *,
    flops_ratio: float | tuple[float, float] | None = None,
    steps: int | None = None,
    data: str | None = None,
    recipe: str | Path | Recipe | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    num_classes: int | None = None,
    reading: LoadOptions = LoadOptions(),
    **options: Any,
) -> TrainResult:
    """Fine-tunes a checkpoint into the folder `out`: a DyDiT to `flops_ratio`, or for every one between two; a static model as
    it is (the control).

    Without a `recipe` the data set's own is taken, and without `data` the set that the checkpoint was trained on. `steps`
    stretches the recipe's phases; `settings` replaces single values, such as {"train.lr": 1e-4}; `num_classes`
    re-initialises the label table, keeping the null row; further options as in `run_training`. The same call continues a
    run that was interrupted; `resume` gives a finished one more steps.
    """
    start = read(checkpoint, reading)
    resolved = resolve_recipe(
        recipe, flops_ratio=flops_ratio, steps=steps, data=data, settings=settings, trained_on=start.trained_on
    )
    return run_training(tuned_start(start, resolved, reading, num_classes), out, **options)


def tuned_start(checkpoint: CheckpointLike, recipe: Recipe, reading: LoadOptions, num_classes: int | None) -> RunSpec:
    """A fine-tuning of `checkpoint`, and how what it begins with is read again."""
    start = read(checkpoint, reading)
    # a relative path would be another one's elsewhere; a hub id or a bundled name is the same everywhere
    path = str(Path(start.path).resolve()) if start.path is not None and Path(start.path).exists() else start.path
    if reading.adapter is not None:
        reading = replace(reading, adapter=str(Path(reading.adapter).resolve()))
    source = {"checkpoint": path, "reading": asdict(reading), "num_classes": num_classes}
    if num_classes is not None and recipe.lora.rank is not None:
        raise DyditError(f"{num_classes} classes: their label table begins anew, and with adapters it would not be trained")
    if num_classes is not None:
        start = with_classes(start, num_classes, recipe.train.seed)
    if recipe.routing.tokens == "layers" and isinstance(start.config, RoutedConfig):
        start = replace(start, config=replace(start.config, token_routing="layers"))
    if recipe.routing.range and isinstance(start.config, RoutedConfig):
        start = with_range(start, *recipe.routing.range)
    return RunSpec("finetune", start, for_model(recipe, start.config), source, teacher_of(recipe, start))


def teacher_of(recipe: Recipe, start: Checkpoint) -> Checkpoint | None:
    """The teacher that the recipe names; raises `DyditError` where it sees or predicts something else than `start` does."""
    if recipe.train.teacher is None:
        return None
    teacher = read(recipe.train.teacher)
    pair = (start.config, teacher.config)
    for what in ("process", *TAUGHT):
        own, other = (family_of(one).process if what == "process" else getattr(one, what, None) for one in pair)
        if own != other:
            raise DyditError(f"train.teacher {recipe.train.teacher}: its {what} is {other}, and the model's is {own}")
    if recipe.train.block_weight:
        (wide, deep), (own_wide, own_deep) = ((one.hidden_size, one.depth) for one in (teacher.config, start.config))
        if own_wide != wide or own_deep > deep:
            raise DyditError(
                f"train.block_weight: the teacher has {deep} blocks of width {wide} and the model {own_deep} of {own_wide}; it "
                "is for models of one width, and of no more blocks than the teacher has: leave it out"
            )
    return teacher


def resume(
    folder: str | Path, checkpoint: CheckpointLike | None = None, *, steps: int | None = None, **options: Any
) -> TrainResult:
    """Continues the unfinished run in `folder` to the end that it would have had; options as in `run_training`.

    With `steps` it ends after so many, as a run of so many ends that has the same phases; so may a finished one whose recipe
    has `train.keep_state`. `checkpoint` is what it began with, where that has moved. Raises `DyditError` where there is no
    such run, the start is not to be found or another one, or a run of `steps` would have begun otherwise: with a cosine
    schedule, and within the last `routing.noise_off_steps`.
    """
    settings = {} if steps is None else {"train.steps": steps}
    return run_training(unfinished(folder, checkpoint, settings), folder, **options)


def unfinished(
    folder: str | Path, checkpoint: CheckpointLike | None = None, settings: Mapping[str, Any] | None = None
) -> RunSpec:
    """The run in `folder` that is to be continued, with `settings` in its recipe replaced; other `train.steps` may be those
    of a finished run too."""
    run = RunFolder(Path(folder))
    more = settings is not None and "train.steps" in settings and not run.states.exists()
    if more and not run.kept.exists():
        raise DyditError(
            f"{folder}: holds no state to take more steps from; a run keeps its last one with --set train.keep_state=true, and "
            f"any result can be trained further: dydit finetune {folder} --out DIR"
        )
    states = run.kept if more else run.states
    recipe, facts = with_settings(states.recipe(), settings or {}, "options"), states.read()
    if facts.get("action") == "pretrain":
        return random_start(recipe)
    source = facts["source"]
    checkpoint = checkpoint or source["checkpoint"]
    if checkpoint is None:
        raise DyditError(f"{folder}: began with a model in memory; give that checkpoint again")
    return tuned_start(checkpoint, recipe, LoadOptions(**source["reading"]), source["num_classes"])


def resolve_recipe(
    recipe: str | Path | Recipe | None,
    *,
    flops_ratio: float | tuple[float, float] | None = None,
    steps: int | None = None,
    data: str | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    trained_on: str | None = None,
) -> Recipe:
    """The recipe with the given values in place of its own; without one, that of `data` or of what the model was
    `trained_on`. Raises `DyditError` for what is out of range."""
    low, high = flops_ratio if isinstance(flops_ratio, tuple) else (flops_ratio, None)
    for ratio in (low, high):
        if ratio is not None and not 0 < ratio <= 1:
            raise DyditError(f"FLOPs ratio {ratio:g}; it must be over 0 and at most 1")
    if low is not None and high is not None and not low < high:
        raise DyditError(f"FLOPs ratios {low:g}:{high:g}; give the smaller one first")
    if steps is not None and steps < 1:
        raise DyditError(f"{steps} steps; train at least 1")
    resolved = recipe if isinstance(recipe, Recipe) else read_recipe(recipe or recipe_of(data or trained_on or "digits"))
    if steps is not None:
        resolved = with_steps(resolved, steps)
    given = {"routing.flops_ratio": low, "routing.largest_ratio": high, "data": data}
    return with_settings(with_settings(resolved, {key: value for key, value in given.items() if value is not None}), settings)


def recipe_of(data: str) -> str:
    """The shipped recipe to fine-tune with on a data set; raises `DyditError` where there is no such set or recipe."""
    find_source(data)
    recipe = default_recipe(data)
    if recipe is None:
        raise DyditError(f"data set {data} has no recipe of its own; name one with --recipe, see dydit recipes ls")
    return recipe


def run_training(
    spec: RunSpec,
    out: str | Path,
    *,
    device: str = "auto",
    force: bool = False,
    track: str | None = None,
    on_begin: Callable[[int], None] = lambda step: None,
    on_note: Callable[[str], None] = lambda text: None,
    on_step: Callable[[StepMetrics], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Trains, calibrates where the recipe has it, and writes config.json, model.safetensors (EMA weights), metrics.jsonl and
    recipe.json; where the recipe does not merge its adapters, these in the place of the first two (`checkpoint.adapter`).

    An interrupted run is saved like a finished one, its lineage saying how many steps it took, and its states stay beside
    it; the same call again continues it, to the same bits on a cpu. `on_begin` is given the step at which this starts.
    `track` is a name in `tracking.TRACKERS`, which is passed every step's figures.
    Under a launcher the processes share each batch, and the main one alone calls `on_` functions. Raises `DyditError` where
    another process trains into `out`, and, after saving, where the gradient guard ended the run.
    """
    folder, recipe, start = RunFolder(Path(out)), spec.recipe, spec.start
    if track is not None:
        check_tracker(track)
    with init_distributed(device) as processes, ExitStack() as stack:
        folder.check(spec, force)
        data = load_data(recipe.data, start.config)
        data.check(start.config, start.latents)
        if processes.main:
            stack.enter_context(locked(out))
            folder.check(spec, force)  # again: another process may have finished here since
        try:
            saved = folder.open(spec, force, processes, on_note)
            model = start.build().to(pick_device(device)).float()
            teacher = None if spec.teacher is None else spec.teacher.build().to(pick_device(device)).float()
            step, watched = 0 if saved is None else saved.step, None
            if processes.main:
                on_begin(step)
                if track is not None:
                    watched = stack.enter_context(tracking(track, folder.path, step, flat(recipe.model_dump()), on_note))
            with folder.log(processes.main) as log:

                def record(metrics: StepMetrics) -> None:
                    log.write(json.dumps(metrics.to_dict()) + "\n")
                    if watched is not None:
                        watched(metrics)
                    if on_step:
                        on_step(metrics)

                def save(state: Saved) -> None:
                    os.fsync(log.fileno())  # no state is ever ahead of its metrics
                    folder.states.save(state, recipe.train.keep)

                hooks: dict[str, Any] = {"save": save, "on_step": record, "should_stop": should_stop}
                result = train(model, data, recipe, teacher=teacher, processes=processes, resume=saved, **hooks)
            if processes.main:
                # the command that began the run made it, whichever one ended it
                with made_with(folder.states.made().get("command")):
                    result = write_result(model, spec, result, folder, device, data)
        except OSError as error:
            raise DyditError(f"{out}: cannot be written: {error.strerror or error}; choose another place") from None
        processes.wait()
    if result.stopped is not None:
        raise DyditError(f"{result.stopped}; step {result.steps} is saved in {out}")
    return replace(result, unreadable=describe_skipped(data.skipped))


def asked_of(recipe: Recipe) -> dict[str, Any]:
    """The ratio, or the range of ratios, that a recipe asks for, for a lineage."""
    ratios = recipe.routing.range
    return {"flops_ratio": recipe.routing.flops_ratio} if ratios is None else {"flops_ratios": list(ratios)}


def leave(trained: Checkpoint, start: Checkpoint, lora: Lora | None, merge: bool, folder: Path) -> None:
    """Writes the model into `folder`, or its adapter alone; what an earlier run left there of the other kind goes."""
    if lora is None or merge:
        native.write_into(trained, folder)
        others = [adapter.CONFIG_FILE, adapter.WEIGHTS_FILE]
    else:
        adapter.write_adapter(folder, lora, trained, start)
        others = [native.CONFIG_FILE, native.WEIGHTS_FILE, lineage.CARD_FILE]
    for name in others:
        (folder / name).unlink(missing_ok=True)


def write_result(
    model: Backbone,
    spec: RunSpec,
    result: TrainResult,
    folder: RunFolder,
    device: str,
    data: Dataset | None = None,
) -> TrainResult:
    """Writes the trained model into the run's folder; of a run that has ended it is calibrated first, where the recipe has
    it, and the states go last, so that a kill at any moment leaves a run that continues."""
    recipe, start, calibration = spec.recipe, spec.start, None
    parts = {part: getattr(recipe.routing, part) for part in ("width", "tokens")} if spec.dynamic else {}
    step = lineage.entry(
        spec.action,
        start,
        data=recipe.data,
        steps=result.steps,
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
        **(asked_of(recipe) if spec.dynamic else {}),
        **{part: routing for part, routing in parts.items() if routing != "learned"},
        **({} if recipe.lora.rank is None else {"lora_rank": recipe.lora.rank}),
    )
    trained = Checkpoint.of(model, [*start.lineage, step], like=start)
    if data is not None:  # what the start does not tell is the data's
        names = dict(enumerate(data.class_names)) if data.class_names else None
        trained = replace(trained, labels=start.labels or names, latents=start.latents or data.latents)
    ended = not result.interrupted and result.stopped is None
    part, options = recipe.calibration, dict[str, Any](seed=recipe.train.seed, device=device)
    if ended and spec.dynamic and recipe.routing.range:
        trained = measure_range(trained, images=part.images, settings=part.settings, **options)
    elif ended and spec.dynamic and recipe.routing.calibrate:
        ratio = recipe.routing.flops_ratio
        trained, calibration = calibrate(trained, ratio, images=part.images, settings=part.settings, **options)
    leave(trained, start, result.lora, recipe.lora.merge, folder.path)
    if ended:
        folder.finish(recipe.train.keep_state)
    return replace(result, calibration=calibration, last=result.last or folder.last_metrics())
