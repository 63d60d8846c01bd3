"""Sections of checkpoints and of the runs that made them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dydit_cli import units
from dydit_cli.artifacts.run import CheckpointFolder, Run
from dydit_cli.reports.format import protocol, table
from dydit_cli.reports.pictures import svg_figures
from dydit_cli.reports.reproduce import as_toml, how_made, origin_of_model
from dydit_cli.reports.section import Column, Metric, Section, Table
from dydit_cli.reports.words import words

PARTS_OF_A_RUN = 10

# what tells one run from another; the whole recipe is on the page as a file
TRAINING = (
    "data", "steps", "batch_size", "lr", "lr_schedule", "weight_decay", "ema_decay", "label_dropout", "grad_limit", "precision",
    "seed",
)  # fmt: skip

ROUTING = ("flops_ratio", "weight", "warmup_steps", "complete_steps", "router_lr", "noise_off_steps", "width", "tokens")


def checkpoint_sections(checkpoint: CheckpointFolder, name: str, id_prefix: str) -> list[Section]:
    """A checkpoint, and where it is one, the training run beside it."""
    run = checkpoint if isinstance(checkpoint, Run) else None
    model, config, lineage = checkpoint.model, checkpoint.model_config, checkpoint.lineage
    recipe = {} if run is None or run.recipe is None else run.recipe
    training = {**recipe.get("train", {}), "data": recipe.get("data")}
    routing = recipe.get("routing", {}) if config is not None and config.dynamic else {}
    begun = None if run is None else run.begun
    # a run that was killed has no model whose lineage could tell
    origin = how_made(name, begun) if begun is not None and not lineage else origin_of_model(name, lineage)
    return [
        Section(
            name=name,
            about=checkpoint.noun(),
            summary=words("run", name=name, model=model, lineage=lineage, run=run, **({} if run is None else figures_of(run))),
            metrics=[] if run is None else metrics_of(run),
            protocol={
                **({} if config is None else {"model": size_of(config)}),
                **{label.replace("sampling steps", "steps"): text for label, text in protocol(training, TRAINING).items()},
                **{f"routing: {label}": text for label, text in protocol(routing, ROUTING).items()},
            },
            figures=[] if run is None else svg_figures(run, id_prefix),
            tables=[*([] if run is None else [progress_table(run.metrics)]), *lineage_table(lineage)],
            notes=[] if run is None or begun is None else [unfinished(run, begun, name)],
            versions={"dydit": str(lineage[-1]["dydit"])} if lineage and "dydit" in lineage[-1] else {},
            origin=origin,
            files={f"{name}.toml": as_toml(recipe)} if recipe else {},
        )
    ]


def unfinished(run: Run, begun: Mapping[str, Any], name: str) -> str:
    """That steps are missing, and the command that continues."""
    planned = "" if run.planned_steps is None else f" of {run.planned_steps:,}"
    command = shlex.join(["dydit", str(begun.get("action", "finetune")), "--resume", name])
    return f"The run is not finished: {run.steps:,}{planned} steps are done. Continue it with: {command}"


def size_of(config: Any) -> str:
    """A configuration in a line."""
    return (
        f"{config.model_name}: depth {config.depth}, width {config.hidden_size}, {config.num_heads} heads, {config.patches}, "
        f"{config.classes}"
    )


def figures_of(run: Run) -> dict[str, Any]:
    """Time, and means over the last tenth of the steps so far."""
    metrics = run.metrics
    end = metrics.iloc[-max(1, len(metrics) // PARTS_OF_A_RUN) :]
    dynamic = bool(end["target"].notna().all())
    return {
        "took": f" in {units.seconds(float(metrics['seconds'].iloc[-1]))}" if "seconds" in metrics.columns else "",
        "loss": float((end["mse"] + end["vb"]).mean()),
        "ratio": float(end["ratio"].astype(float).mean()) if dynamic else None,
        "target": float(end["target"].iloc[-1]) if dynamic else None,
    }


def metrics_of(run: Run) -> list[Metric]:
    """How short the fine-tuning was."""
    before = sum(int(entry.get("steps", 0)) for entry in run.lineage if entry.get("action") == "pretrain")
    if not before or run.lineage[-1].get("action") != "finetune":
        return []
    return [Metric("fine-tuning", f"{run.steps:,}", f"steps, {units.share(run.steps / before)} of the pre-training")]


def progress_table(metrics: pd.DataFrame) -> Table:
    """Means over ten equal parts of the run."""
    rows = []
    for part in np.array_split(np.arange(len(metrics)), min(PARTS_OF_A_RUN, len(metrics))):
        lines = metrics.iloc[part]
        rows.append(
            [
                f"{lines['step'].iloc[0]} to {lines['step'].iloc[-1]}",
                float((lines["mse"] + lines["vb"]).astype(float).mean()),
                float(lines["ratio"].astype(float).mean()),
                float(lines["target"].astype(float).mean()),
                int(lines["skipped"].astype(bool).sum()),
                float(lines["seconds"].iloc[-1]) if "seconds" in lines.columns else None,
            ]
        )
    columns = [
        Column("steps"),
        Column("diffusion loss", "MSE + VLB", ".4g"),
        Column("ratio reached", "of static", ".3f"),
        Column("target", "of static", ".3f"),
        Column("skipped", "steps", ".0f"),
        Column("time since start", "s", ".1f"),
    ]
    caption = "The run in ten parts, means over each; ratios are of attention and MLP, under the training noise"
    return table(caption, columns, rows)


def lineage_table(lineage: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Where the weights come from, step by step."""
    rows = []
    for i, entry in enumerate(lineage, 1):
        facts = {key: value for key, value in entry.items() if key not in ("action", "source", "command")}
        details = "; ".join(f"{key} {text}" for key, text in protocol(facts).items()).replace("sampling steps", "steps")
        rows.append([str(i), str(entry.get("action", "?")), entry.get("source"), details])
    columns = [Column("no."), Column("step"), Column("from"), Column("details")]
    return [table("Lineage: what was done to the weights, in order", columns, rows)] if rows else []
