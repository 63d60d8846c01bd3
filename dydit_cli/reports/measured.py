"""Sections of what was measured: samples, evaluations, benchmarks and losses."""

from __future__ import annotations

from dataclasses import asdict

from dydit_cli.artifacts.bench import BenchResult
from dydit_cli.artifacts.evaluation import Evaluation
from dydit_cli.artifacts.losses import Losses
from dydit_cli.artifacts.samples import CACHE_FIELDS, SOLVED, SampleFolder
from dydit_cli.reports.format import NAMES, UNITS, protocol, table
from dydit_cli.reports.pictures import pictures_of, svg_figures
from dydit_cli.reports.reproduce import how_made, into_file
from dydit_cli.reports.section import TIMES, Column, Gallery, Metric, Section, Table
from dydit_cli.reports.sliders import budget_of
from dydit_cli.reports.words import words

LOSSES = (
    "data", "held_out", "images", "timesteps", "map_model", "map_timesteps", "map_noises", "seed", "dtype", "device", "loss",
)  # fmt: skip

SAMPLES = (
    "checkpoint", "flops_ratio", "classes", "sampler", "steps", "cfg", "cfg_channels", "cfg_interval", "spacing", *SOLVED,
    "execution", "tome", *CACHE_FIELDS, "dtype", "seed", "vae", "device",
)  # fmt: skip


def sample_sections(samples: SampleFolder, name: str, id_prefix: str) -> list[Section]:
    """Images that `dydit sample` drew, as pictures or as one array."""
    record, pictures = samples.record, pictures_of(samples)
    images, checkpoint = samples.images, record.get("checkpoint")
    what = f"The first {len(pictures)} of {images:,} samples" if images > len(pictures) else f"{len(pictures)} samples"
    notes = []
    if not samples.finished:
        again = f": {record['command']}" if "command" in record else ""
        notes = [f"{samples.drawn:,} of {images:,} images are drawn. The same command draws the rest{again}"]
    return [
        Section(
            name=name,
            about=samples.noun(),
            summary=words("samples", samples=samples),
            protocol={"images": f"{images:,}", **protocol(record, SAMPLES)},
            galleries=[Gallery(f"{what}, of {checkpoint}", pictures)] if pictures else (),
            notes=notes,
            origin=how_made(name, record),
            budget=budget_of(record),
        )
    ]


def evaluation_sections(evaluation: Evaluation, name: str, id_prefix: str) -> list[Section]:
    """The JSON file of `dydit evaluate`."""
    facts = evaluation.protocol
    columns, row = [Column("samples"), Column("images", "count", ",.0f")], [facts["samples"], facts["images"]]
    said, metrics = [], []
    for figure, value in evaluation.figures.items():
        label = NAMES.get(figure, figure.replace("_", " "))
        unit, spec, scale = ("%", ".1f", 100.0) if figure == "recognised" else (*UNITS.get(figure, ("no unit", ".4g")), 1.0)
        columns.append(Column(label, unit, spec, scale))
        row.append(value)
        if value is not None:
            text = format(value * scale, spec) + (" %" if unit == "%" else "")
            said.append(f"{label} {text}")
            if figure in ("fid", "frechet", "recognised"):
                metrics.append(Metric(label, text, "of samples, by the classifier" if unit == "%" else unit))
    return [
        Section(
            name=name,
            about=evaluation.noun(),
            summary=words("evaluation", protocol=facts, figures=said),
            metrics=metrics,
            protocol=protocol({key: value for key, value in facts.items() if key not in ("torch", "dydit")}),
            tables=[table("How good the samples are", columns, [row])],
            notes=[str(note) for note in evaluation.notes],
            versions={key: str(facts[key]) for key in ("dydit", "torch") if key in facts},
            origin=how_made(name, into_file(evaluation.command, name)),
        )
    ]


def bench_sections(bench: BenchResult, name: str, id_prefix: str) -> list[Section]:
    """The JSON file of `dydit bench --json`."""
    steps, peaks = bench.settings.steps, bench.peak_bytes
    rows = [
        [kind, spread.median, spread.low, spread.high, 1000 * spread.median / steps, *([peaks.get(kind)] if peaks else [])]
        for kind, spread in bench.seconds.items()
    ]
    columns = [
        Column("execution"),
        *(Column(f"time, {part}", "s", ".3f") for part in ("median", "lower quartile", "upper quartile")),
        Column("time", "ms per step", ".2f"),
        *([Column("memory, peak", "GB", ".2f", 1e-9)] if peaks else []),
    ]
    timed = "ToMe" if bench.tome else bench.timed
    parts = [
        [part, both["static"], both[bench.timed], both[bench.timed] / both["static"] if both["static"] else None]
        for part, both in bench.parts.items()
    ]
    part_columns = [Column("part"), Column("static", "s", ".3f"), Column(timed, "s", ".3f"), Column(timed, "of static", ".3f")]
    return [
        Section(
            name=name,
            about=bench.noun(),
            summary=words("bench", b=bench),
            metrics=[
                Metric("speed-up", f"{bench.speedup.median:.2f} {TIMES}", f"of static, at {bench.flops_ratio:.3f} of its MACs")
            ],
            protocol=protocol(
                {
                    "model": bench.model,
                    "tome": bench.tome,
                    **(bench.cache or {}),
                    **asdict(bench.settings),
                    "device": bench.device,
                }
            ),
            figures=svg_figures(bench, id_prefix),
            tables=[
                table(f"Time of a sampling run of {steps} steps, planning included", columns, rows),
                table("Where the time goes", part_columns, parts),
            ],
            versions=bench.versions,
            origin=how_made(name, into_file(bench.command, name)),
        )
    ]


def loss_sections(losses: Losses, name: str, id_prefix: str) -> list[Section]:
    """Losses over the timesteps and over the patches."""
    means = [(model, float(mse.mean())) for model, mse in zip(losses.names, losses.mse, strict=True)]
    return [
        Section(
            name=name,
            about=losses.noun(),
            summary=words("losses", s=losses.summary, target=losses.target, means=means),
            protocol=protocol(losses.summary, LOSSES),
            figures=svg_figures(losses, id_prefix),
            tables=[phases_of(losses)],
            versions=losses.summary["versions"],
            origin=how_made(name, losses.summary),
        )
    ]


def phases_of(losses: Losses) -> Table:
    """Each model's loss in four phases of the schedule."""
    phases = losses.phases.dropna(axis=1)
    columns = [Column("timesteps"), *(Column(name, f"MSE of the {losses.target}", ".4g") for name in losses.names)]
    rows = [[name, *(float(value) for value in of_models)] for name, of_models in phases.items()]
    return table("Loss by phase of the schedule, noisiest first", columns, rows)
