"""Sections of what was measured: samples, evaluations, benchmarks and losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dydit_cli.artifacts.losses import Losses, read_losses
from dydit_cli.reports.commands import SAMPLING, command, sampling
from dydit_cli.reports.format import NAMES, UNITS, facts_table, protocol, scrubbed
from dydit_cli.reports.pictures import drawn_of, pictures_of, read_values
from dydit_cli.reports.section import TIMES, Column, Gallery, Key, Section, Table

LOSSES = (
    "data",
    "held_out",
    "images",
    "timesteps",
    "map_model",
    "map_timesteps",
    "map_noises",
    "seed",
    "dtype",
    "device",
    "loss",
)

DRAWN = ("checkpoint", "classes", *SAMPLING, "vae", "device")

SPREAD = ("median", "lower quartile", "upper quartile")


def sample_sections(folder: Path, place: str) -> list[Section]:
    """Images that `dydit sample` drew, as pictures or as one array."""
    values, pictures = read_values(folder / "samples.json"), pictures_of(folder)
    images, name = values.get("images", len(pictures)), folder.resolve().name
    time = f", {values['seconds_per_image']:.3g} s per image" if "seconds_per_image" in values else ""
    array = True if (folder / "samples.npz").is_file() else None
    what = f"The first {len(pictures)} of {images:,} samples" if images > len(pictures) else f"{len(pictures)} samples"
    return [
        Section(
            name=name,
            about="samples",
            summary=f"{images:,} images drawn from {values.get('checkpoint')}{time}.",
            protocol={"images": f"{images:,}", **protocol(values, DRAWN)},
            galleries=[Gallery(f"{what}, of {values.get('checkpoint')}", pictures)] if pictures else (),
            commands=[sampling("sample", values, SAMPLING, num=values.get("images"), npz=array, out=name)],
        )
    ]


def evaluation_sections(path: Path, place: str) -> list[Section]:
    """The JSON file of `dydit evaluate`."""
    values = read_values(path)
    facts: dict[str, Any] = values["protocol"]
    figures = {name: value for name, value in values.items() if name not in ("protocol", "notes")}
    columns, row, said, keys = (
        [Column("samples"), Column("images", "count", ",.0f")],
        [facts["samples"], facts["images"]],
        [],
        [],
    )
    for figure, value in figures.items():
        name = NAMES.get(figure, figure.replace("_", " "))
        unit, spec, scale = ("%", ".1f", 100.0) if figure == "recognised" else (*UNITS.get(figure, ("no unit", ".4g")), 1.0)
        columns.append(Column(name, unit, spec, scale))
        row.append(value)
        if value is not None:
            text = format(value * scale, spec)
            said.append(f"{name} {text}{' %' if unit == '%' else ''}")
            if figure in ("fid", "frechet", "recognised"):
                keys.append(Key(name, f"{text} %", "of samples, by the judge") if unit == "%" else Key(name, text, unit))
    shown = {name: value for name, value in facts.items() if name not in ("torch", "dydit")}
    again = sampling("evaluate", {"checkpoint": facts["samples"]}, (), features=str(facts.get("features")).split("-")[0],
                     reference=facts.get("reference"), out=path.name)  # fmt: skip
    return [
        Section(
            name=path.name,
            about="evaluation",
            summary=f"{facts['images']:,} images of {facts['samples']} against {facts.get('reference')}: {', '.join(said)}.",
            keys=keys,
            protocol=protocol(shown),
            tables=[facts_table("How good the samples are", columns, [row])],
            notes=[str(note) for note in values["notes"]],
            versions={name: str(facts[name]) for name in ("dydit", "torch") if name in facts},
            commands=[again],
        )
    ]


def bench_sections(path: Path, place: str) -> list[Section]:
    """The JSON file of `dydit bench --json`."""
    values = read_values(path)
    settings = values["settings"]
    steps = settings["steps"]
    times = [
        [kind, *(spread[name] for name in ("median", "low", "high")), 1000 * spread["median"] / steps]
        for kind, spread in values["seconds"].items()
    ]
    columns = [
        Column("execution"),
        *(Column(f"time, {name}", "s", ".3f") for name in SPREAD),
        Column("time", "ms per step", ".2f"),
    ]
    if values.get("peak_bytes"):
        columns.append(Column("memory, peak", "GB", ".2f", 1e-9))
        times = [[*row, values["peak_bytes"].get(row[0])] for row in times]
    parts = [
        [part, both["static"], both["sparse"], both["sparse"] / both["static"] if both["static"] else None]
        for part, both in values["parts"].items()
    ]
    low, high = values["speedup_quartiles"]
    options = {key: settings.get(key) for key in ("batch", "steps", "repeats", "dtype", "seed")}
    subject = {"model": values["model"]} if values["model"].startswith("DiT-") else {}
    again = command("bench", *([] if subject else [values["model"]]), **subject, measure=settings["measured"], **options)
    return [
        Section(
            name=path.name,
            about="benchmark",
            summary=(
                f"{values['model']} sampled sparsely is {values['speedup']:.2f} times as fast as the static model "
                f"(quartiles {low:.2f} to {high:.2f}) at a FLOPs ratio of {values['flops_ratio']:.3f}: a realised "
                f"efficiency of {values['realised_efficiency']:.2f}, where 1 is time saved in proportion to FLOPs. Batch "
                f"{settings['batch']}, {steps} steps, {values['device']}."
            ),
            keys=[
                Key("speed-up", f"{values['speedup']:.2f} {TIMES}", f"of static, at {values['flops_ratio']:.3f} of its MACs")
            ],
            protocol=protocol({"model": values["model"], **settings, "device": values["device"]}),
            figures=drawn_of(path, place),
            tables=[
                facts_table(f"Time of a sampling run of {steps} steps, planning included", columns, times),
                facts_table(
                    "Where the time goes",
                    [
                        Column("part"),
                        Column("static", "s", ".3f"),
                        Column("sparse", "s", ".3f"),
                        Column("sparse", "of static", ".3f"),
                    ],
                    parts,
                ),
            ],
            versions=values.get("versions", {}),
            commands=[f"{again} --json > {path.name}"],
        )
    ]


def loss_sections(folder: Path, place: str) -> list[Section]:
    """Losses over the timesteps and over the patches."""
    losses = read_losses(folder)
    values, name = scrubbed(losses.summary), folder.resolve().name
    means = [float(of_model.mean()) for of_model in losses.mse]
    said = ", ".join(f"{model} {mean:.4g}" for model, mean in zip(losses.names, means, strict=True))
    return [
        Section(
            name=name,
            about="losses",
            summary=(
                f"The mean squared error of the predicted noise, over {values['images']:,} real images and "
                f"{values['timesteps']:,} timesteps, is for {said}."
            ),
            protocol=protocol(values, LOSSES),
            figures=drawn_of(folder, place),
            tables=[phases_of(losses)],
            versions=values["versions"],
            commands=[
                command(
                    "losses",
                    *(model["checkpoint"] for model in values["models"]),
                    **{key: values[key] for key in ("data", "images", "timesteps", "seed")},
                    out=name,
                )
            ],
        )
    ]


def phases_of(losses: Losses) -> Table:
    """Each model's loss in four phases of the schedule."""
    rows = []
    for low in (750, 500, 250, 0):
        within = (losses.timesteps >= low) & (losses.timesteps < low + 250)
        if within.any():
            rows.append([f"{low + 249} to {low}", *(float(of_model[within].mean()) for of_model in losses.mse)])
    columns = [Column("timesteps"), *(Column(name, "MSE of the noise", ".4g") for name in losses.names)]
    return facts_table("Loss by phase of the schedule, noisiest first", columns, rows)
