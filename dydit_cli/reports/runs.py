"""Sections of checkpoints and of the runs that made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dydit_cli import units
from dydit_cli.artifacts.run import read_metrics
from dydit_cli.reports.commands import as_toml, lineage_commands
from dydit_cli.reports.format import facts_table, protocol
from dydit_cli.reports.pictures import drawn_of, read_values
from dydit_cli.reports.section import Column, Key, Section, Table

PARTS_OF_A_RUN = 10

# what tells one run from another; the whole recipe is on the page as a file
TRAINING = (
    "data", "steps", "batch_size", "lr", "lr_schedule", "weight_decay", "ema_decay", "label_dropout", "grad_limit", "precision",
    "seed",
)  # fmt: skip

ROUTING = ("flops_ratio", "weight", "warmup_steps", "complete_steps", "router_lr", "noise_off_steps", "width", "tokens")


def run_sections(folder: Path, place: str) -> list[Section]:
    """A folder with metrics.jsonl, config.json or both: a training run, or a checkpoint alone."""
    name = folder.resolve().name
    config = read_values(folder / "config.json") if (folder / "config.json").is_file() else {}
    recipe = read_values(folder / "recipe.json") if (folder / "recipe.json").is_file() else None
    metrics = read_metrics(folder) if (folder / "metrics.jsonl").is_file() else None
    lineage: list[dict[str, Any]] = config.get("lineage", [])
    model: dict[str, Any] = config.get("model", {})
    last = lineage[-1] if lineage else {}
    settings = {} if recipe is None else {**recipe.get("train", {}), "data": recipe.get("data")}
    routing = recipe.get("routing") if recipe is not None and model.get("kind") == "dydit" else None
    recipe_file = None if recipe is None else f"{name}.toml"
    return [
        Section(
            name=name,
            about="training run" if metrics is not None else "checkpoint",
            summary=" ".join(sentences(name, model, lineage, metrics)),
            keys=keys_of(lineage, metrics),
            protocol={
                **({"model": size_of(model)} if model else {}),
                **{
                    ("steps" if name == "sampling steps" else name): text for name, text in protocol(settings, TRAINING).items()
                },
                **({f"routing: {name}": text for name, text in protocol(routing, ROUTING).items()} if routing else {}),
            },
            figures=drawn_of(folder, place) if metrics is not None else (),
            tables=[*([] if metrics is None else [progress_table(metrics)]), *lineage_table(lineage)],
            versions={"dydit": str(last["dydit"])} if "dydit" in last else {},
            commands=lineage_commands(lineage, name, recipe_file),
            files={} if recipe_file is None or recipe is None else {recipe_file: as_toml(recipe)},
        )
    ]


def size_of(model: Mapping[str, Any]) -> str:
    """A configuration in a line."""
    kind = "DyDiT" if model["kind"] == "dydit" else "DiT"
    side, patch, channels = model["input_size"], model["patch_size"], model["in_channels"]
    return (
        f"{kind}: depth {model['depth']}, width {model['hidden_size']}, {model['num_heads']} heads, patches of {patch} in "
        f"{channels} x {side} x {side}, {model['num_classes']} classes"
    )


def sentences(
    name: str, model: Mapping[str, Any], lineage: Sequence[Mapping[str, Any]], metrics: pd.DataFrame | None
) -> list[str]:
    """What the checkpoint is and how its training went."""
    found = []
    if model:
        what = "dynamic (DyDiT)" if model.get("kind") == "dydit" else "static (DiT)"
        found.append(f"{name} is a {what} model of depth {model['depth']}, width {model['hidden_size']}.")
    steps = [
        f"{entry.get('action')} ({entry['steps']:,} steps)" if "steps" in entry else str(entry.get("action"))
        for entry in lineage
    ]
    if steps:
        found.append(f"Its lineage: {', then '.join(steps)}.")
    if metrics is not None:
        end = metrics.iloc[-max(1, len(metrics) // PARTS_OF_A_RUN) :]
        took = f" in {units.seconds(float(metrics['seconds'].iloc[-1]))}" if "seconds" in metrics.columns else ""
        found.append(
            f"This run took {int(metrics['step'].iloc[-1]):,} steps{took}; over its last tenth the diffusion loss of a batch "
            f"was {float((end['mse'] + end['vb']).mean()):.4g} on average"
            + (
                f" and the FLOPs ratio, of attention and MLP under the training noise, "
                f"{float(end['ratio'].astype(float).mean()):.3f} for a target of {float(end['target'].iloc[-1]):g}."
                if end["target"].notna().all()
                else "."
            )
        )
    return found


def keys_of(lineage: Sequence[Mapping[str, Any]], metrics: pd.DataFrame | None) -> list[Key]:
    """How short the fine-tuning was."""
    before = sum(int(entry.get("steps", 0)) for entry in lineage if entry.get("action") == "pretrain")
    if metrics is None or not before or lineage[-1].get("action") != "finetune":
        return []
    share = units.share(int(metrics["step"].iloc[-1]) / before)
    return [Key("fine-tuning", f"{int(metrics['step'].iloc[-1]):,}", f"steps, {share} of the pre-training")]


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
    return facts_table(
        "The run in ten parts, means over each; ratios are of attention and MLP, under the training noise", columns, rows
    )


def lineage_table(lineage: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Where the weights come from, step by step."""
    if not lineage:
        return []
    rows = []
    for i, entry in enumerate(lineage, 1):
        facts = {key: value for key, value in entry.items() if key not in ("action", "source")}
        details = "; ".join(f"{key} {text}" for key, text in protocol(facts).items()).replace("sampling steps", "steps")
        rows.append([str(i), str(entry.get("action", "?")), entry.get("source"), details])
    columns = [Column("no."), Column("step"), Column("from"), Column("details")]
    return [facts_table("Lineage: what was done to the weights, in order", columns, rows)]
