"""Sections of what `dydit profile` writes: one profile, several compared, heads and groups alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from dydit_cli import units
from dydit_cli.artifacts.profile import Profile, read_profile
from dydit_cli.errors import DyditError
from dydit_cli.reports.commands import command, lineage_commands, sampling
from dydit_cli.reports.format import frame_table, protocol
from dydit_cli.reports.pictures import drawn_of, read_values, without_paths
from dydit_cli.reports.section import TIMES, Key, Section, Table

PROTOCOL = (
    "checkpoint", "flops_ratio_asked", "sampler", "steps", "cfg", "cfg_channels", "spacing", "images", "seed", "dtype",
    "device", "unit",
)  # fmt: skip

OPTIONS = ("sampler", "steps", "cfg", "cfg_channels", "spacing", "images", "seed")

MOST_ROWS = 300

PHASE_COLUMNS = [
    "phase", "steps", "static_macs", "dynamic_macs", "ratio", "active_heads_share", "active_groups_share",
    "active_tokens_share",
]  # fmt: skip

PARTS = ["attention", "mlp", "routers", "modulation", "norms", "frame"]


def profile_sections(folder: Path, place: str) -> list[Section]:
    """A profile's folder."""
    profile: Profile = without_paths(read_profile(folder))
    summary = profile.summary
    return [
        Section(
            name=folder.resolve().name,
            about="profile",
            summary=sentence(profile),
            keys=keys_of(summary),
            protocol={"size": profile.config.size_name, **protocol(summary, PROTOCOL)},
            # everything is on in a static model: there is nothing to see
            figures=drawn_of(folder, place) if summary["model"]["kind"] == "dydit" else (),
            tables=tables_of(profile),
            notes=notes_of(summary),
            versions=summary["versions"],
            commands=[
                *lineage_commands(summary["lineage"], summary["checkpoint"]),
                sampling("profile", summary, OPTIONS, out=folder.resolve().name),
            ],
        )
    ]


def sentence(profile: Profile) -> str:
    """The profile's figures in prose."""
    summary = profile.summary
    asked = summary["flops_ratio_asked"]
    return (
        f"{summary['checkpoint']}, a {profile.config.size_name}, takes {units.macs(summary['macs_dynamic'])} per forward and "
        f"image where the static model takes {units.macs(summary['macs_static'])}: a ratio of {summary['ratio']:.3f}"
        + (f", {summary['routed_ratio']:.3f} of attention and MLP" if asked is None else "")
        + (f", and {summary['routed_ratio']:.3f} of attention and MLP, where {asked:g} was asked" if asked is not None else "")
        + f". {units.share(summary['active_heads_share'])} of heads, {units.share(summary['active_groups_share'])} of channel "
        f"groups and {units.share(summary['active_tokens_share'])} of tokens were active over {summary['steps']} "
        f"{summary['sampler']} steps and {summary['images']} images."
        + (
            f" Measured time: {1000 * summary['dynamic_seconds']:.3g} ms per forward and image, static "
            f"{1000 * summary['static_seconds']:.3g} ms, a speed-up of {summary['speedup']:.2f}."
            if "speedup" in summary
            else ""
        )
    )


def keys_of(summary: dict[str, Any]) -> list[Key]:
    """MACs first, time where it was taken."""
    size, prefix = units.scale_of(summary["macs_dynamic"])
    keys = [
        Key("FLOPs ratio", f"{summary['ratio']:.3f}", "of the static model's MACs"),
        Key("work", f"{summary['macs_dynamic'] / size:.2f} {prefix}MACs", "per forward and image"),
    ]
    if "speedup" in summary:
        keys.append(Key("speed-up", f"{summary['speedup']:.2f} {TIMES}", "of the static model's speed"))
    return keys


def tables_of(profile: Profile) -> list[Table]:
    """By phase, by part, by block; by timestep and by image where that is not too long."""
    table, blocks, images = profile.table, profile.blocks, profile.images
    means = table.mean()
    parts = pd.DataFrame(
        {
            "part": ["attention", "MLP", "routers", "adaLN", "LayerNorms", "embedders, final layer"],
            "dynamic_macs": [means[f"{part}_macs"] for part in PARTS],
            "of dynamic_share": [means[f"{part}_macs"] / means["dynamic_macs"] for part in PARTS],
        }
    )
    shown = blocks.drop(columns=["step", "timestep", "half"]).groupby("block").mean().reset_index()
    config = profile.config
    by_block = pd.DataFrame(
        {
            "block": shown["block"],
            "active_heads_share": shown["active_heads"] / config.num_heads,
            "active_groups_share": shown["active_groups"] / config.num_heads,
            "active_tokens_share": shown["active_tokens_mean"] / config.num_tokens,
            "attention_macs": shown["attention_macs"],
            "mlp_macs": shown["mlp_macs"],
            "total_macs": shown["total_macs"],
        }
    )
    columns = ["step", "timestep", *[name for name in PHASE_COLUMNS if name not in ("phase", "steps", "static_macs")]]
    found = [
        frame_table("MACs and what is active, by phase of the schedule, noisiest first", profile.phases[PHASE_COLUMNS]),
        frame_table("MACs by part of the model, mean over the steps", parts),
        frame_table("What is active and MACs, by block, mean over steps and images", by_block),
    ]
    if len(table) <= MOST_ROWS:
        found.append(frame_table("MACs and what is active, at every sampling step", table[columns], folded=True))
    if len(images) <= MOST_ROWS:
        found.append(frame_table("MACs of each generated image", images, folded=True))
    return found


def notes_of(summary: dict[str, Any]) -> list[str]:
    """Whether the two counts agree, and what was not counted."""
    notes = []
    if not summary["counters_agree"]:
        notes.append("The calls that ran and the formula count different MACs: the figures may be wrong.")
    for name, calls in summary["operations_without_handle"].items():
        notes.append(f"Not counted: {name}, {calls} calls.")
    return notes


def comparison_sections(folder: Path, place: str) -> list[Section]:
    """Several profiles in one folder: the table of all, then each with its figures."""
    try:
        table = pd.read_csv(folder / "compare.csv")
    except (OSError, ValueError) as error:
        raise DyditError(f"{folder / 'compare.csv'}: not readable as a table: {error}") from None
    values = read_values(folder / "compare.json")
    summaries = values["profiles"]
    table["checkpoint"] = [Path(str(name)).name for name in table["checkpoint"]]
    listed = ", ".join(f"{row['checkpoint']} {row['ratio']:.3f}" for _, row in table.iterrows())
    section = Section(
        name=folder.resolve().name,
        about="comparison",
        summary=f"{len(table)} checkpoints profiled the same way; FLOPs ratios of the static model's MACs: {listed}.",
        tables=[frame_table("Checkpoints profiled the same way, per forward and image", table)],
        versions=summaries[0]["versions"],
        commands=[again(summaries, folder.resolve().name)],
    )
    parts = sorted(path for path in folder.iterdir() if (path / "profile.json").is_file())
    shown = [part.as_part() for i, path in enumerate(parts) for part in profile_sections(path, f"{place}-{i}")]
    return [section, *shown]


def again(summaries: list[dict[str, Any]], name: str) -> str:
    """The command that wrote a comparison."""
    options = {key: summaries[0].get(key) for key in OPTIONS}
    return command("profile", *(summary["checkpoint"] for summary in summaries), **options, out=name)


def width_sections(folder: Path, place: str) -> list[Section]:
    """Heads and groups at all 1,000 timesteps, without images."""
    summary = read_values(folder / "width.json")
    try:
        table = pd.read_csv(folder / "width.csv")
    except (OSError, ValueError) as error:
        raise DyditError(f"{folder / 'width.csv'}: not readable as a table: {error}") from None
    phase = (table["timestep"] // 250).map(lambda i: f"{250 * i + 249} to {250 * i}").rename("timesteps")
    means = table.drop(columns="timestep").groupby(phase, sort=False).mean()[::-1].reset_index()
    return [
        Section(
            name=folder.resolve().name,
            about="profile of heads and groups",
            summary=(
                f"{summary['checkpoint']} switches on {units.share(summary['active_heads_share'])} of heads and "
                f"{units.share(summary['active_groups_share'])} of channel groups over all {summary['timesteps']:,} timesteps: "
                f"between {summary['ratio_no_tokens']:.3f} (no token in an MLP) and {summary['ratio_all_tokens']:.3f} "
                "(every token) of the static MACs."
            ),
            protocol=protocol(summary, ("checkpoint", "timesteps", "unit")),
            figures=drawn_of(folder, place),
            tables=[frame_table("Heads and channel groups by phase of the schedule", means)],
            versions=summary["versions"],
            commands=[command("profile", summary["checkpoint"], width_only=True, out=folder.resolve().name)],
        )
    ]
