"""Sections of a trade-off study, its means and spreads over the seeds, and of the demo."""

from __future__ import annotations

from typing import Any

import pandas as pd

from dydit_cli import units
from dydit_cli.artifacts.demo import Demo
from dydit_cli.artifacts.study import StudyTable, cache_of, other_steps
from dydit_cli.figures.tradeoff import row_label, style_of
from dydit_cli.reports.format import column, frame_table, protocol, table
from dydit_cli.reports.pictures import WIDEST, encoded, svg_figures
from dydit_cli.reports.profiles import profile_sections
from dydit_cli.reports.reproduce import as_toml, how_made
from dydit_cli.reports.runs import checkpoint_sections
from dydit_cli.reports.section import TIMES, Column, Gallery, Metric, Section, Table
from dydit_cli.reports.words import words

NO_PROTOCOL = {"format", "command", "rows_names", "timing", "samples", "dydit", "torch", "versions"}

# what a study's TOML holds; its folder also keeps the recipes that it names
RECIPE = ("model", "data", "seeds", "keep_checkpoints", "finetune", "methods", "evaluation", "timing")

DYDIT, STATIC, TOME = "dydit", "static", "tome"


def study_sections(study: StudyTable, name: str, id_prefix: str) -> list[Section]:
    """A study's folder, finished or not."""
    facts, means = study.protocol, means_of(study.alike, study.keys)
    return [
        Section(
            name=name,
            about=study.noun(),
            summary=words("study", **sentences(means), model=facts.get("model", "a model")),
            metrics=metrics_of(means),
            protocol=protocol({key: value for key, value in facts.items() if key not in NO_PROTOCOL}),
            figures=svg_figures(study, id_prefix),
            tables=[
                spread_table(study),
                frame_table("Every row of the study: a method, its target and a seed", study.rows, folded=True),
            ],
            notes=unfinished(facts),
            versions={key: str(facts[key]) for key in ("dydit", "torch") if key in facts},
            origin=how_made(name, facts),
            files={f"{name}.toml": as_toml(nested(study.recipe))} if study.recipe else {},
        )
    ]


def means_of(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Method, target, steps, cache, seeds, and the means over the seeds, in the order of the rows."""
    groups = rows.groupby(keys, sort=False, dropna=False)
    means = groups.mean(numeric_only=True).drop(columns="seed")
    means.insert(0, "seeds", groups["seed"].nunique())
    return means.reset_index()


def spread_table(study: StudyTable) -> Table:
    """A line for each method, target, number of steps and cache; a mean and its standard deviation share a cell, sorted by the
    mean."""
    means = means_of(study.rows, study.keys)
    spreads = study.rows.groupby(study.keys, sort=False, dropna=False).std(numeric_only=True).reset_index()
    figures = [name for name in means.columns if name not in (*study.keys, "seeds") and means[name].notna().any()]
    spread_out = {name for name in figures if (spreads[name] > 0).any()}
    lines = [
        [
            row_label(
                str(mean["method"]),
                float(mean["target"]),
                other_steps(mean.get("steps"), study.steps),
                cache_of(mean.get("cache")),
            ),
            int(mean["seeds"]),
            *((mean[name], spread[name]) if name in spread_out else mean[name] for name in figures),
        ]
        for mean, spread in zip(means.to_dict("records"), spreads.to_dict("records"), strict=True)
    ]
    columns = [Column("variant"), Column("seeds", "count", ".0f"), *(column(name, means[name]) for name in figures)]
    return table("Variants compared: mean ± standard deviation over the seeds", columns, lines)


def sentences(means: pd.DataFrame) -> dict[str, Any]:
    """What the summary tells: each DyDiT beside the best of the prunings to the same target."""
    static, rows = means[means["method"] == STATIC], []
    prunings = means[[str(method) not in (DYDIT, TOME) and not style_of(str(method)).whole for method in means["method"]]]
    for _, row in means[means["method"] == DYDIT].sort_values("target", ascending=False).iterrows():
        rivals = prunings[prunings["target"] == row["target"]].dropna(subset="frechet").sort_values("frechet")
        best = None if rivals.empty else rivals.iloc[0]
        rival = None if best is None else {"label": row_label(str(best["method"]), float("nan")), **best[["ratio", "frechet"]]}
        rows.append({"ratio": row["ratio"], "frechet": row["frechet"], "rival": rival})
    return {
        "variants": len(means),
        "seeds": int(means["seeds"].max()),
        "static": float(static["frechet"].iloc[0]) if len(static) else None,
        "dynamic": rows,
    }


def metrics_of(means: pd.DataFrame) -> list[Metric]:
    """Those of the DyDiT that takes the fewest MACs."""
    ours = means[means["method"] == DYDIT].dropna(subset=["ratio", "frechet"])
    if ours.empty:
        return []
    least = ours.sort_values("ratio").iloc[0]
    unit = f"of DyDiT at {least['ratio']:.3f} of static MACs"
    metrics = [Metric("Fréchet distance", f"{least['frechet']:.3g}", unit)]
    if "recognised" in means.columns and pd.notna(least["recognised"]):
        metrics.append(Metric("recognised", units.share(least["recognised"]), unit))
    return metrics


def nested(recipe: dict[str, Any]) -> dict[str, Any]:
    """`{"finetune.steps": 2}` as `{"finetune": {"steps": 2}}`, of what belongs to the study's own file."""
    result: dict[str, Any] = {}
    for key, value in recipe.items():
        section, _, name = key.partition(".")
        if section in RECIPE:
            (result.setdefault(section, {}) if name else result)[name or section] = value
    return result


def unfinished(facts: dict[str, Any]) -> list[str]:
    """That rows are missing, and the command that continues."""
    done, rows = facts.get("rows_done"), facts.get("rows")
    again = f" Continue it with: {facts['command']}" if "command" in facts else ""
    return [f"{done} of {rows} rows are done: the study is not finished.{again}"] if done is not None and done != rows else []


def demo_sections(demo: Demo, name: str, id_prefix: str) -> list[Section]:
    """The demo's comparison, then its profile and its run."""
    values = demo.values
    static, dynamic = values["static"], values["dynamic"]
    speed, share = static["seconds"] / dynamic["seconds"], units.share(values["finetune_share"])
    size, prefix = units.scale_of(static["macs"])
    of_samples = f"of {values['images']} samples; static {units.share(static['recognised'])}"
    models = [("static DiT", 1.0, static), (f"DyDiT, lambda {values['flops_ratio']:g}", values["ratio"], dynamic)]
    if cached := values.get("cached"):  # an older demo has none
        models.append((f"{models[1][0]}, {cached['cache']}", cached["macs"] / static["macs"], cached))
    columns = [
        Column("model"),
        Column("work", f"{prefix}MACs per forward", ".2f", 1 / size),
        Column("ratio", "of static MACs", ".3f"),
        Column("recognised", "%", ".1f", 100.0),
        Column("sampling time", "s", ".1f"),
    ]
    head = Section(
        name=name,
        about=demo.noun(),
        summary=words("demo", d=values, speedup=speed),
        metrics=[
            Metric("FLOPs ratio", f"{values['ratio']:.3f}", "of the static model's MACs"),
            Metric("recognised", units.share(dynamic["recognised"]), of_samples),
            Metric("speed-up", f"{speed:.2f} {TIMES}", f"over {values['images']} samples each"),
            Metric("fine-tuning", f"{values['finetune_steps']:,}", f"steps, {share} of pre-training"),
        ],
        protocol=protocol(
            values,
            ("images", "flops_ratio", "sampler", "steps", "cfg", "seed", "device", "finetune_steps", "classifier_accuracy"),
        ),
        tables=[
            table(
                f"Static and dynamic model on handwritten digits, {values['images']} samples each",
                columns,
                [[model, of["macs"], ratio, of["recognised"], of["seconds"]] for model, ratio, of in models],
            )
        ],
        galleries=[
            Gallery("The same seeds and classes through both models", [encoded(demo.picture, "static DiT and DyDiT", WIDEST)])
        ]
        if demo.picture
        else (),
        origin=how_made(name, values),
        files={"recipe.toml": as_toml(demo.recipe)} if demo.recipe else {},
    )
    parts = [
        *profile_sections(demo.profile, "profile", f"{id_prefix}-p"),
        *checkpoint_sections(demo.run, "finetuned", f"{id_prefix}-f"),
    ]
    return [head, *(part.as_part() for part in parts)]
