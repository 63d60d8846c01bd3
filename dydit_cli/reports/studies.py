"""The section of a trade-off study: means and spreads over the seeds, every row, and its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from dydit_cli import units
from dydit_cli.artifacts.study import WHOLE, StudyTable, read_study
from dydit_cli.errors import DyditError
from dydit_cli.figures.tradeoff import row_label
from dydit_cli.reports.commands import as_toml, command
from dydit_cli.reports.format import column, facts_table, frame_table, protocol, scrubbed, value_of
from dydit_cli.reports.pictures import drawn_of, picture_file, read_values
from dydit_cli.reports.profiles import profile_sections
from dydit_cli.reports.runs import run_sections
from dydit_cli.reports.section import TIMES, Column, Gallery, Key, Section, Table

NO_PROTOCOL = {"format", "rows_names", "timing", "samples", "dydit", "torch", "versions"}

ROW = ("method", "target", "seed")

# what a study's TOML holds; its folder also keeps the recipes that it names
RECIPE = ("model", "data", "seeds", "keep_checkpoints", "finetune", "methods", "evaluation", "timing")

DYDIT, STATIC, TOME = "dydit", "static", "tome"


def study_sections(folder: Path, place: str) -> list[Section]:
    """A study's folder, finished or not."""
    study: StudyTable = read_study(folder)
    facts, means = scrubbed(study.protocol), means_of(study.rows)
    recipe = read_values(folder / "recipe.json") if (folder / "recipe.json").is_file() else {}
    name = folder.resolve().name
    return [
        Section(
            name=name,
            about="study",
            summary=" ".join(sentences(means, facts)),
            keys=keys_of(means),
            protocol=protocol({key: value for key, value in facts.items() if key not in NO_PROTOCOL}),
            figures=drawn_of(folder, place),
            tables=[
                spread_table(study.rows),
                frame_table("Every row of the study: a method, its target and a seed", study.rows, folded=True),
            ],
            notes=unfinished(facts),
            versions={key: str(facts[key]) for key in ("dydit", "torch") if key in facts},
            commands=[command("study", f"{name}.toml", out=name)],
            files={f"{name}.toml": as_toml(nested(recipe))} if recipe else {},
        )
    ]


def means_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Method, target, seeds, and the means over the seeds, in the order of the rows."""
    groups = rows.groupby(["method", "target"], sort=False, dropna=False)
    means = groups.mean(numeric_only=True).drop(columns="seed")
    means.insert(0, "seeds", groups["seed"].nunique())
    return means.reset_index()


def spread_table(rows: pd.DataFrame) -> Table:
    """A line for each method and target; a mean and its standard deviation share a cell, sorted by the mean."""
    means = means_of(rows)
    spreads = rows.groupby(["method", "target"], sort=False, dropna=False).std(numeric_only=True).reset_index()
    figures = [name for name in means.columns if name not in (*ROW, "seeds") and means[name].notna().any()]
    spread_out = {name for name in figures if (spreads[name] > 0).any()}
    lines: list[list[Any]] = []
    for line, spread in zip(means.to_dict("records"), spreads.to_dict("records"), strict=True):
        cells = [
            (value_of(line[name]), value_of(spread[name])) if name in spread_out else value_of(line[name]) for name in figures
        ]
        lines.append([row_label(str(line["method"]), float(line["target"])), int(line["seeds"]), *cells])
    columns = [Column("variant"), Column("seeds", "count", ".0f"), *(column(name, means[name]) for name in figures)]
    return Table("Variants compared: mean ± standard deviation over the seeds", columns, lines)


def sentences(means: pd.DataFrame, facts: dict[str, Any]) -> list[str]:
    """The closest rivals in words: each DyDiT beside the best of the others that were asked for the same."""
    most = int(means["seeds"].max())
    seeds = f"{most} seeds each" if most > 1 else "one seed each"
    found = [f"{len(means)} variants of {facts.get('model', 'a model')} compared, {seeds}, by the Fréchet distance of their "
             "samples to real images (lower is better)."]  # fmt: skip
    static = means[means["method"] == STATIC]
    if len(static):
        found.append(f"The static model has {static['frechet'].iloc[0]:.3g}.")
    for _, row in means[means["method"] == DYDIT].sort_values("target", ascending=False).iterrows():
        said = f"DyDiT with {row['ratio']:.3f} of its MACs has {row['frechet']:.3g}"
        rivals = means[~means["method"].isin([DYDIT, TOME, *WHOLE]) & (means["target"] == row["target"])].dropna(
            subset="frechet"
        )
        if len(rivals):
            best = rivals.sort_values("frechet").iloc[0]
            label = row_label(str(best["method"]), float("nan"))
            said += f", the best pruning there ({label}, {best['ratio']:.3f}) {best['frechet']:.3g}"
        found.append(f"{said}.")
    return found


def keys_of(means: pd.DataFrame) -> list[Key]:
    """The DyDiT that spends least."""
    ours = means[means["method"] == DYDIT].dropna(subset=["ratio", "frechet"])
    if ours.empty:
        return []
    least = ours.sort_values("ratio").iloc[0]
    where = f"of DyDiT at {least['ratio']:.3f} of static MACs"
    keys = [Key("Fréchet distance", f"{least['frechet']:.3g}", where)]
    if "recognised" in means.columns and pd.notna(least["recognised"]):
        keys.append(Key("recognised", units.share(least["recognised"]), where))
    return keys


def nested(recipe: dict[str, Any]) -> dict[str, Any]:
    """`{"finetune.steps": 2}` as `{"finetune": {"steps": 2}}`, of what belongs to the study's own file."""
    found: dict[str, Any] = {}
    for key, value in recipe.items():
        section, _, name = key.partition(".")
        if section in RECIPE:
            (found.setdefault(section, {}) if name else found)[name or section] = value
    return found


def unfinished(facts: dict[str, Any]) -> list[str]:
    """That rows are missing."""
    done, rows = facts.get("rows_done"), facts.get("rows")
    return [f"{done} of {rows} rows are done: the study is not finished."] if done is not None and done != rows else []


def demo_sections(folder: Path, place: str) -> list[Section]:
    """The demo's comparison, then its profile and its run."""
    values, name = read_values(folder / "demo.json"), folder.resolve().name
    static, dynamic = values["static"], values["dynamic"]
    if not (folder / "finetuned").is_dir() or not (folder / "profile").is_dir():
        raise DyditError(f"{folder}: a demo's folder without its finetuned or profile; run dydit demo --out {folder} --force")
    speed = static["seconds"] / dynamic["seconds"]
    rows = [
        ["static DiT", static["macs"], 1.0, static["recognised"], static["seconds"]],
        [
            f"DyDiT, lambda {values['flops_ratio']:g}",
            dynamic["macs"],
            values["ratio"],
            dynamic["recognised"],
            dynamic["seconds"],
        ],
    ]
    size, prefix = units.scale_of(static["macs"])
    picture = folder / "samples.png"
    head = Section(
        name=name,
        about="demo",
        summary=(
            f"The bundled model of handwritten digits, made dynamic and fine-tuned for {values['finetune_steps']} steps "
            f"({units.share(values['finetune_share'])} of its pre-training), takes {units.macs(dynamic['macs'])} per forward "
            f"and image in place of {units.macs(static['macs'])}, a ratio of {values['ratio']:.3f}. Of {values['images']} "
            f"samples {units.share(dynamic['recognised'])} are recognised as the digit asked for, of the static model's "
            f"{units.share(static['recognised'])}; sampling took {units.seconds(dynamic['seconds'])} in place of "
            f"{units.seconds(static['seconds'])} on one {values['device']}, {speed:.2f} times as fast."
        ),
        keys=[
            Key("FLOPs ratio", f"{values['ratio']:.3f}", "of the static model's MACs"),
            Key(
                "recognised",
                units.share(dynamic["recognised"]),
                f"of {values['images']} samples; static {units.share(static['recognised'])}",
            ),
            Key("speed-up", f"{speed:.2f} {TIMES}", f"over {values['images']} samples each"),
            Key(
                "fine-tuning",
                f"{values['finetune_steps']:,}",
                f"steps, {units.share(values['finetune_share'])} of pre-training",
            ),
        ],
        protocol=protocol(
            values,
            ("images", "flops_ratio", "sampler", "steps", "cfg", "seed", "device", "finetune_steps", "classifier_accuracy"),
        ),
        tables=[
            facts_table(
                f"Static and dynamic model on handwritten digits, {values['images']} samples each",
                [
                    Column("model"),
                    Column("work", f"{prefix}MACs per forward", ".2f", 1 / size),
                    Column("ratio", "of static MACs", ".3f"),
                    Column("recognised", "%", ".1f", 100.0),
                    Column("sampling time", "s", ".1f"),
                ],
                rows,
            )
        ],
        galleries=[Gallery("The same seeds and classes through both models", [picture_file(picture, "static DiT and DyDiT")])]
        if picture.is_file()
        else (),
        commands=[command("demo", images=values["images"], seed=values["seed"], out=name)],
        files={"recipe.toml": as_toml(read_values(folder / "recipe.json"))} if (folder / "recipe.json").is_file() else {},
    )
    parts = [*profile_sections(folder / "profile", f"{place}-p"), *run_sections(folder / "finetuned", f"{place}-f")]
    return [head, *(part.as_part() for part in parts)]
