"""Say how good samples are: FID, sFID, inception score, precision and recall as in ADM's suite, or a bundled set's own.

Inception wants `pip install 'dydit[evaluate]'` and its weights. All that a figure depends on is printed and stored with it.

Example: `dydit evaluate runs/samples --features digits`
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dydit_cli import units
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.cli import console, options
from dydit_cli.cli.build import Typed
from dydit_cli.cli.planning import Planned, planned
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.registry import features_help
from dydit_cli.options import Arg, Opt
from dydit_cli.sampling.options import SamplingConfig

if TYPE_CHECKING:
    from dydit_cli.artifacts.evaluation import Evaluation

PLANNED = True

# what images that are there already are evaluated with; all else is for a checkpoint to sample from
OF_IMAGES = ("SAMPLES", "--reference", "--features", "--inception", "--out", "--batch", "--device", "--force", "--json")

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
    typed: Typed,
    samples: Annotated[str, Arg("SAMPLES", "A folder of images, an .npz (arr_0), or a checkpoint to sample from.")],
    reference: Annotated[
        str | None,
        Opt(
            "An ADM reference batch (.npz), a folder of real images, or a data set: digits, digits:held-out, ...",
            metavar="REF",
            default="of a set's own features: its real ones to train on",
        ),
    ] = None,
    features: Annotated[str, Opt(features_help(), metavar="JUDGE")] = "inception",
    inception: Annotated[
        Path | None, Opt("torch-fidelity's file of Inception weights.", metavar="PATH", default="in PyTorch's hub cache")
    ] = None,
    out: Annotated[Path | None, Opt("Store figures and protocol: .json.", ("--out", "-o"), metavar="FILE")] = None,
    num: Annotated[int, Opt("How many images a checkpoint draws; of a data set the first ones.", min=2)] = 1000,
    classes: options.Classes = None,
    *,
    config: SamplingConfig,
    loading: LoadOptions,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.evaluate.evaluate import evaluate as run
    from dydit_cli.evaluate.evaluate import find_extractor, find_images
    from dydit_cli.evaluate.images import ArrayImages, GeneratedImages
    from dydit_cli.evaluate.reference import open_reference
    from dydit_cli.files import check_output

    if out is not None:
        if out.suffix != ".json":
            raise DyditError(f"--out {out}: figures are stored as JSON; end the name in .json")
        out = check_output(out, force)
    images = find_images(samples)
    if images is None:  # that the samples are missing is said before the networks are looked for
        loaded = options.read_to_run(samples, loading)
        config = replace(config, classes=options.class_numbers(classes, loaded))
        at_once = min(num, config.batch)
        options.show_cache(loaded, config.cache, config.settings, at_once, config.plan_memory, config.dtype)
    else:
        takes = (*OF_IMAGES, "--num") if isinstance(images, ArrayImages) else OF_IMAGES
        if option := typed.other_than(*takes):
            raise DyditError(f"{option} is for a checkpoint to sample from; {samples} is images already")
        if isinstance(images, ArrayImages) and "--num" in typed.options:
            images = images.first(num)
    extractor = find_extractor(features, inception=inception, device=config.device)
    against = open_reference(reference, extractor)
    if planned():
        from dydit_cli.costs.others import evaluation_plan

        raise Planned(evaluation_plan((loaded, num) if images is None else images, against, extractor, config, out))
    if images is None:
        images = GeneratedImages(loaded, config, num)
    with console.stages() as work:
        result = run(
            images, against, extractor, batch=config.batch, device=config.device, on_stage=work.begin, on_work=work.advance
        )
    if out is not None:
        result.write(out)
    if json:
        console.as_json(result.to_json())
    else:
        show(result)


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
