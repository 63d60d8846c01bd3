"""Sections of what `dydit profile` writes: one profile, several compared, heads and groups alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from dydit_cli import units
from dydit_cli.artifacts.comparison import Comparison
from dydit_cli.artifacts.profile import Profile
from dydit_cli.artifacts.samples import CACHE_FIELDS, SOLVED
from dydit_cli.artifacts.width import WidthProfile
from dydit_cli.reports.films import film_of
from dydit_cli.reports.format import frame_table, protocol
from dydit_cli.reports.pictures import svg_figures
from dydit_cli.reports.reproduce import how_made
from dydit_cli.reports.section import TIMES, Metric, Origin, Section, Table
from dydit_cli.reports.sliders import budget_of
from dydit_cli.reports.words import words

PROTOCOL = (
    "checkpoint", "flops_ratio_asked", "sampler", "steps", "cfg", "cfg_channels", "spacing", *SOLVED, "tome", *CACHE_FIELDS,
    "images", "seed", "dtype", "device", "unit",
)  # fmt: skip

MOST_ROWS = 300

ACTIVE = ["active_heads_share", "active_groups_share", "active_tokens_share"]


def profile_sections(profile: Profile, name: str, id_prefix: str) -> list[Section]:
    """A profile's folder."""
    summary = profile.summary
    return [
        Section(
            name=name,
            about=profile.noun(),
            summary=words("profile", s=summary, size=profile.config.size_name),
            metrics=metrics_of(summary),
            protocol={"size": profile.config.size_name, **protocol(summary, PROTOCOL)},
            # everything is on in a static model: there is nothing to see
            figures=svg_figures(profile, id_prefix) if profile.config.dynamic else (),
            tables=tables_of(profile),
            notes=notes_of(summary),
            versions=summary["versions"],
            origin=how_made(name, summary, summary["lineage"]),
            budget=budget_of(summary),
            film=film_of(profile, name),
        )
    ]


def metrics_of(summary: dict[str, Any]) -> list[Metric]:
    """MACs first, time where it was taken."""
    size, prefix = units.scale_of(summary["macs_dynamic"])
    metrics = [
        Metric("FLOPs ratio", f"{summary['ratio']:.3f}", "of the static model's MACs"),
        Metric("work", f"{summary['macs_dynamic'] / size:.2f} {prefix}MACs", "per forward and image"),
    ]
    if "speedup" in summary:
        metrics.append(Metric("speed-up", f"{summary['speedup']:.2f} {TIMES}", "of the static model's speed"))
    return metrics


def tables_of(profile: Profile) -> list[Table]:
    """By phase, by part, by block; by timestep and by image where that is not too long."""
    table, images, config = profile.table, profile.images, profile.config
    means = table.mean()
    parts = pd.DataFrame(
        {
            "part": list(units.PARTS.values()),
            "dynamic_macs": [means[f"{part}_macs"] for part in units.PARTS],
            "of dynamic_share": [means[f"{part}_macs"] / means["dynamic_macs"] for part in units.PARTS],
        }
    )
    blocks = profile.blocks.drop(columns=["step", "timestep", "half"]).groupby("block").mean().reset_index()
    by_block = pd.DataFrame(
        {
            "block": blocks["block"],
            "active_heads_share": blocks["active_heads"] / config.num_heads,
            "active_groups_share": blocks["active_groups"] / config.num_heads,
            "active_tokens_share": blocks["active_tokens_mean"] / config.num_tokens,
            **{name: blocks[name] for name in ("attention_macs", "mlp_macs", "total_macs")},
        }
    )
    by_phase = profile.phases[["phase", "steps", "static_macs", "dynamic_macs", "ratio", *ACTIVE]]
    tables = [
        frame_table("MACs and what is active, by phase of the schedule, noisiest first", by_phase),
        frame_table("MACs by part of the model, mean over the steps", parts),
        frame_table("What is active and MACs, by block, mean over steps and images", by_block),
    ]
    if len(table) <= MOST_ROWS:
        by_step = table[["step", "timestep", "dynamic_macs", "ratio", *ACTIVE]]
        tables.append(frame_table("MACs and what is active, at every sampling step", by_step, folded=True))
    if len(images) <= MOST_ROWS:
        tables.append(frame_table("MACs of each generated image", images, folded=True))
    return tables


def notes_of(summary: dict[str, Any]) -> list[str]:
    """Whether the two counts agree, and what was not counted."""
    notes = [f"Not counted: {name}, {calls} calls." for name, calls in summary["operations_without_handle"].items()]
    if not summary["counters_agree"]:
        notes.insert(0, "The calls that ran and the formula count different MACs: the figures may be wrong.")
    return notes


def comparison_sections(comparison: Comparison, name: str, id_prefix: str) -> list[Section]:
    """Several profiles in one folder: the table of all, then each with its figures."""
    summary = comparison.summary
    table = comparison.table.assign(checkpoint=[Path(str(path)).name for path in comparison.table["checkpoint"]])
    section = Section(
        name=name,
        about=comparison.noun(),
        summary=words("comparison", ratios=list(zip(table["checkpoint"], table["ratio"], strict=True))),
        tables=[frame_table("Checkpoints profiled the same way, per forward and image", table)],
        versions=summary["profiles"][0]["versions"],
        origin=how_made(name, summary),
    )
    parts = [
        replace(part.as_part(), origin=Origin(steps=part.origin.steps))
        for i, (folder, profile) in enumerate(comparison.profiles.items())
        for part in profile_sections(profile, folder, f"{id_prefix}-{i}")
    ]
    return [section, *parts]


def width_sections(width: WidthProfile, name: str, id_prefix: str) -> list[Section]:
    """Heads and groups at all 1,000 timesteps, without images."""
    summary = width.summary
    return [
        Section(
            name=name,
            about=width.noun(),
            summary=words("width", s=summary),
            protocol=protocol(summary, ("checkpoint", "timesteps", "unit")),
            tables=[frame_table("Heads and channel groups by phase of the schedule", width.phases)],
            versions=summary["versions"],
            origin=how_made(name, summary),
        )
    ]
