"""dydit evaluate"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dydit_cli import units
from dydit_cli.cli import console, options
from dydit_cli.errors import DyditError

if TYPE_CHECKING:
    from dydit_cli.artifacts.evaluation import Evaluation

# what only a checkpoint can be told
DRAWING = (
    "num", "classes", "cfg", "cfg_interval", "cfg_channels", "sampler", "steps", "spacing", "execution", "tome", "dtype",
    "vae", "plan_memory", "seed", "weights", "num_heads", "input_size", "timestep_variant",
)  # fmt: skip

NAMES = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "inception score",
    "frechet": "Fréchet distance",
    "recognised": "recognised",
    "precision": "precision",
    "recall": "recall",
}


def evaluate(
    context: typer.Context,
    samples: Annotated[
        str,
        typer.Argument(metavar="SAMPLES", help="A folder of images, an .npz (arr_0), or a checkpoint to sample from."),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="REF",
            help="An ADM reference batch (.npz), a folder of real images, digits, or digits:held-out (glyphs likewise).",
            show_default="of digits and glyphs: the real ones of the training set",
        ),
    ] = None,
    features: Annotated[
        str, typer.Option(help="inception (FID, sFID, IS, precision, recall), digits or glyphs (for the bundled sets).")
    ] = "inception",
    inception: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="torch-fidelity's file of Inception weights.", show_default="in PyTorch's hub cache"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Store figures and protocol: .json.")] = None,
    num: Annotated[int, typer.Option(min=2, help="How many images a checkpoint draws.")] = 1000,
    classes: Annotated[str | None, typer.Option(help="Classes in turn, such as 0,1,5-7.", show_default="all")] = None,
    cfg: options.Cfg = 1.5,
    cfg_interval: options.CfgInterval = None,
    cfg_channels: options.CfgChannels = "3",
    sampler: options.Sampler = "ddim",
    steps: options.SamplerSteps = None,
    spacing: options.Spacing = None,
    execution: Annotated[str, typer.Option(help="sparse, masked, or complete (everything on).")] = "sparse",
    tome: options.Tome = 0,
    dtype: Annotated[str, typer.Option(help="The model runs in fp32, bf16 or fp16.")] = "fp32",
    vae: Annotated[str | None, typer.Option(metavar="DIR", help="An AutoencoderKL, for models of latents.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images looked at, or drawn, at once.")] = 64,
    plan_memory: options.PlanMemory = None,
    seed: options.Seed = 0,
    weights: options.Weights = "ema",
    num_heads: options.NumHeads = None,
    input_size: options.InputSize = None,
    timestep_variant: options.TimestepVariant = None,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Say how good samples are: FID, sFID, inception score, precision and recall as in ADM's suite, or a bundled set's own.

    Inception wants `pip install 'dydit[evaluate]'` and its weights. All that a figure depends on is printed and stored with it.

    Example: `dydit evaluate runs/samples --features digits`
    """
    from dydit_cli.evaluate.evaluate import evaluate as run
    from dydit_cli.evaluate.evaluate import find_extractor, find_images
    from dydit_cli.evaluate.reference import open_reference
    from dydit_cli.files import check_output

    if out is not None:
        if out.suffix != ".json":
            raise DyditError(f"--out {out}: figures are stored as JSON; end the name in .json")
        out = check_output(out, force)
    images = find_images(samples)
    if images is not None:
        given = [name for name in DRAWING if _typed(context, name)]
        if given:
            raise DyditError(f"--{given[0].replace('_', '-')} is for a checkpoint to sample from; {samples} is images already")
    extractor = find_extractor(features, inception=inception, device=device)
    against = open_reference(reference, extractor)
    if images is None:
        from dydit_cli.evaluate.images import GeneratedImages

        settings = options.sampler_settings(sampler, steps, cfg, cfg_channels, spacing, cfg_interval)
        loaded = options.read(samples, options.reading(weights, num_heads, input_size, timestep_variant))
        how = options.drawing(
            loaded, settings, classes, plan_memory, seed=seed, execution=execution, dtype=dtype, vae=vae, batch=batch,
            device=device, tome=tome,
        )  # fmt: skip
        images = GeneratedImages(loaded, how, num)
    with console.stages() as work:
        result = run(images, against, extractor, batch=batch, device=device, on_stage=work.begin, on_work=work.advance)
    if out is not None:
        result.write(out)
    if json:
        console.as_json(result.to_json())
    else:
        show(result)


def _typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def show(result: Evaluation) -> None:
    """The figures, the protocol, and what to mind."""
    columns = [name for name in NAMES if name in result.figures]
    console.table(
        f"Features: {result.protocol['features'].partition(',')[0]}",
        ["images", *[NAMES[name] for name in columns]],
        [[f"{result.protocol['images']:,}", *[_figure(name, result.figures[name]) for name in columns]]],
    )
    console.facts("Protocol", {name.replace("_", " "): text for name, text in protocol_lines(result.protocol).items()})
    for line in result.notes:
        console.note(f"note: {line}")


def protocol_lines(protocol: dict[str, Any]) -> dict[str, str]:
    """Name and value of what is known; that nothing is known about how the images were made is said."""
    lines = {name: _value(name, value) for name, value in protocol.items() if value is not None}
    return lines if "checkpoint" in lines else {**lines, "not recorded": "checkpoint, sampler, steps, cfg, seed, dtype"}


def _value(name: str, value: Any) -> str:
    if name.endswith("accuracy"):
        return f"{units.share(value)} of held-out real images"
    return " to ".join(str(part) for part in value) if isinstance(value, list) else str(value)


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "recognised":
        return units.share(value)
    return f"{value:.3f}" if name in ("precision", "recall") else f"{value:.4g}"


def register(app: typer.Typer) -> None:
    app.command()(evaluate)
