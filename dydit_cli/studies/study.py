"""`dydit study`: all rows, then their times, then the tables; every finished row is on disk and is never run again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.read import read
from dydit_cli.data.dataset import ImageData
from dydit_cli.data.load import load_data, load_held_out
from dydit_cli.devices import pick_device, world_size
from dydit_cli.errors import DyditError
from dydit_cli.model.macs import static_macs
from dydit_cli.sampling.sampler import cache_of
from dydit_cli.studies.folder import TABLES, StudyFolder
from dydit_cli.studies.measure import Evaluator, judge_facts, open_judges
from dydit_cli.studies.methods import Start, rows_of
from dydit_cli.studies.progress import Interrupted, OnStage, OnWork
from dydit_cli.studies.recipe import FREE, StudyRecipe, read_study
from dydit_cli.studies.runner import Runner
from dydit_cli.studies.tables import Tables, make_tables
from dydit_cli.train.recipe import CalibrationRecipe, defaults, flat
from dydit_cli.train.run_folder import fingerprint
from dydit_cli.version import __version__


def settings_of(start: Start) -> tuple[dict[str, Any], set[str]]:
    """What a study has to be begun with again, flat, the fine-tuning recipes with all their values; and the names of what
    is at its default, which an older study's folder may lack."""
    settings, unchanged = flat(start.recipe.model_dump(mode="json")), defaults(start.recipe)
    for name, tuning in start.tunings.items():
        settings |= flat(tuning.model_dump(mode="json"), f"{name}.")
        # a calibration's sampler is the model's own where none is given
        usual = flat(CalibrationRecipe().for_model(start.checkpoint.config).model_dump(mode="json"), f"{name}.calibration.")
        unchanged |= defaults(tuning, f"{name}.") | {key for key, value in usual.items() if settings[key] == value}
    return {**settings, "first_seed": start.recipe.seeds[0], "model_sha256": fingerprint(start.checkpoint)}, unchanged


def make_evaluator(recipe: StudyRecipe, static: Checkpoint, device: str) -> Evaluator:
    """What all rows are measured with."""
    config = recipe.evaluation
    judges = open_judges(config.judges, config.reference, recipe.data, device)
    held_out = held_out_part(recipe.data, config.held_out)
    return Evaluator(config, judges, held_out, static_macs(static.config), device)


def held_out_part(data: str, count: int) -> ImageData | None:
    """`count` images of the part that is held out of `data`, from everywhere in it; None where it has no such part."""
    part = load_held_out(data) if count else None
    if part is None:
        return None
    images, labels = part.take(torch.linspace(0, len(part) - 1, min(count, len(part))).round().long())
    return ImageData(part.name, images, labels, part.num_classes)


def facts(start: Start, evaluator: Evaluator) -> dict[str, Any]:
    """The protocol's facts that all rows share."""
    recipe, evaluation, config = start.recipe, start.recipe.evaluation, start.checkpoint.config
    sampling = evaluation.settings.for_model(config).protocol()
    main, *others = evaluator.judges
    pretrained = sum(int(entry["steps"]) for entry in start.checkpoint.lineage if entry.get("action") == "pretrain")
    return {
        "model": recipe.model,
        "model_sha256": fingerprint(start.checkpoint),
        "model_size": config.size_name,
        "macs_static": evaluator.macs,
        "data": recipe.data,
        "finetune_steps": recipe.finetune.steps,
        "finetune_share": recipe.finetune.steps / pretrained if pretrained else None,
        "finetune_recipes": {"dynamic": recipe.finetune.dynamic, "static": recipe.finetune.static},
        "calibrated": recipe.finetune.calibrate,
        **({"tome": "merges tokens of the static model while sampling, without fine-tuning"} if recipe.methods.tome else {}),
        "images": evaluation.images,
        "classes": list(range(config.num_classes)),
        **{name: sampling.pop(name) for name in ("sampler", "cfg", "cfg_channels")},
        "vae": evaluation.vae,
        "steps": sampling.pop("steps"),
        **{name: value for name, value in sampling.items() if name not in ("spacing", "cfg_interval")},
        **judge_facts(main),
        **(
            {"judges": recipe.evaluation.judges, "other_judges": {judge.name: judge_facts(judge) for judge in others}}
            if others
            else {}
        ),
        "held_out_images": None if evaluator.held_out is None else len(evaluator.held_out),
        "seeds": list(recipe.seeds),
        "device": start.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dydit": __version__,
    }


@dataclass(frozen=True)
class Study:
    """What a study has come to so far. `table` has a line for each finished row, `summary` one for each method and target,
    `protocol` is study.json; `left` counts the rows that are not done, which other processes may be at."""

    table: pd.DataFrame
    summary: pd.DataFrame
    protocol: dict[str, Any]
    left: int
    interrupted: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows, summary = (table.astype(object).where(table.notna(), None) for table in (self.table, self.summary))
        return {
            "rows": rows.to_dict("records"),
            "summary": summary.to_dict("records"),
            "left": self.left,
            "interrupted": self.interrupted,
            "protocol": self.protocol,
        }


def _silent(*what: Any) -> None:
    pass


def study(
    recipe: str | Path | StudyRecipe,
    out: str | Path,
    *,
    time: bool = True,
    device: str = "auto",
    force: bool = False,
    on_stage: OnStage = _silent,
    on_work: OnWork = _silent,
    should_stop: Callable[[], bool] = lambda: False,
) -> Study:
    """Runs a study into the folder `out`, or goes on with the one in it; `time` takes times when all rows are done.

    Several processes may be given the same study at once: each takes rows that no other one is at. What a row holds
    depends on the row alone, not on who ran it or when. Raises `DyditError` for a recipe that cannot be run, a folder
    with another study in it (without `force`), and where a row fails.
    """
    recipe = recipe if isinstance(recipe, StudyRecipe) else read_study(recipe)
    if world_size() > 1:
        raise DyditError("several processes share a study by the same command, started several times without a launcher")
    device = pick_device(device).type
    static = read(recipe.model)
    if static.config.dynamic:
        raise DyditError(f"{recipe.model}: is a DyDiT; a study begins with the static model")
    recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.for_model(static.config)})
    load_data(recipe.data, static.config).check(static.config, static.latents)
    start, evaluator = Start.of(static, recipe, device), make_evaluator(recipe, static, device)
    folder, rows = StudyFolder(Path(out)), rows_of(recipe)
    for row in rows:  # a number of steps and a cache that cannot be are told before anything runs
        cache_of(static, evaluator.sampling(row))
    settings, unchanged = settings_of(start)
    folder.open(settings, force, FREE, unchanged)
    about = {**facts(start, evaluator), **folder.command()}

    def write_tables() -> Tables:
        with folder.claim(TABLES, wait=True):
            tables = make_tables(folder, recipe, rows, about)
            tables.write()
        return tables

    runner = Runner(start, evaluator, folder, rows, on_stage, on_work, should_stop)
    interrupted = False
    try:
        runner.run_rows(write_tables)
        if time and all(folder.done(row) for row in rows):
            runner.take_times()
    except Interrupted:
        interrupted = True
    tables = write_tables()
    left = sum(not folder.done(row) for row in rows)
    return Study(tables.table, tables.summary, tables.protocol, left, interrupted)
