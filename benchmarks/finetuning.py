"""Fine-tuning variants on the digits, at equal budget: ablations, short budgets, and a cheaper complete-model phase.

    python benchmarks/finetuning.py ablations --seeds 0,1,2
    python benchmarks/finetuning.py budgets
    python benchmarks/finetuning.py complete
    python benchmarks/finetuning.py calibration

Every variant starts from the same conversion of `digits-dit` and changes the shipped recipe `digits/finetune` by what its
row says. Columns: the ratio of attention and MLP in a sampling run (what lambda steers); the diffusion loss on 360 held-out
digits at 20 timesteps with fixed noise, over the static model's; and of 300 samples the Fréchet distance to the real digits
(as `dydit evaluate --features digits`; lower is better) and the share that a classifier recognises.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dydit_cli
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.read import read
from dydit_cli.data.digits import load_digits_split
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.evaluate.classifier import classify_samples
from dydit_cli.evaluate.evaluate import evaluate, find_extractor
from dydit_cli.evaluate.images import ArrayImages
from dydit_cli.model.execution import Executable, executor
from dydit_cli.pixels import to_pixels
from dydit_cli.profiling.calibrate import calibrate
from dydit_cli.profiling.profile import profile
from dydit_cli.studies.measure import held_out_loss

PRETRAINING_STEPS = 12_000
IMAGES = 300

Settings = Mapping[str, Any]
# a `convert.` setting is the conversion's, the others are the recipe's
ABLATIONS: dict[str, Settings] = {
    "both (TDW and SDT)": {},
    "TDW only": {"routing.tokens": "off"},
    "SDT only": {"routing.width": "off"},
    "random routing": {"routing.width": "random", "routing.tokens": "random"},
    "whole layers in place of tokens": {"routing.tokens": "layers"},
    "no ranking": {"convert.ranking": "none"},
    "complete phase, a third of the run": {"routing.complete_steps": 100},
    "no strata": {"train.timestep_strata": 1},
}
# what begins near the ratio needs no way down to it
IMPORTANCE: Settings = {"routing.start": "importance", "routing.hold_steps": 0, "routing.warmup_steps": 0}
BUDGETS: dict[str, Settings] = {
    "the recipe": {},
    "start model's output as target": {"train.teacher_weight": 1.0},
    "routers start by importance": IMPORTANCE,
    "both": {**IMPORTANCE, "train.teacher_weight": 1.0},
}
COMPLETE: dict[str, Settings] = {
    "none": {},
    "every step (the paper)": {"routing.complete_steps": 300},
    "every 8th step": {"routing.complete_steps": 300, "routing.complete_every": 8},
    "an eighth of the batch": {"routing.complete_steps": 300, "routing.complete_share": 0.125},
}


def loss_of(model: Executable) -> float:
    """The diffusion loss on the held-out digits."""
    return held_out_loss(model, load_digits_split(held_out=True))


def measure(settings: Settings, flops_ratio: float, steps: int, seed: int, folder: Path) -> dict[str, float]:
    """Converts and fine-tunes once and looks at the result."""
    conversion = {key.removeprefix("convert."): value for key, value in settings.items() if key.startswith("convert.")}
    recipe = {key: value for key, value in settings.items() if not key.startswith("convert.")}
    dydit_cli.convert("digits-dit", folder / "start", force=True, **conversion)
    result = dydit_cli.finetune(
        folder / "start",
        folder / "run",
        flops_ratio=flops_ratio,
        steps=steps,
        settings={**recipe, "train.seed": seed},
        device="cpu",
        force=True,
    )
    checkpoint = read(folder / "run")
    profiled = profile(checkpoint, images=20, settings=SamplerSettings(), device="cpu")
    return {
        "ratio": profiled.summary["routed_ratio"],
        "loss": loss_of(executor(checkpoint.build(), "sparse")),
        "seconds": result.seconds / result.steps,
        **seen(checkpoint, seed),
    }


def seen(checkpoint: Checkpoint, seed: int) -> dict[str, float]:
    """`frechet` and `recognised` of 300 samples."""
    classified = classify_samples(checkpoint.build(), images=IMAGES, settings=SamplerSettings(), seed=seed)
    images = ArrayImages("samples", to_pixels(classified.samples.numpy()))
    figures = evaluate(images, None, find_extractor("digits"), device="cpu").figures
    return {"frechet": figures["frechet"] or 0.0, "recognised": classified.class_accuracy}


def rows(variants: Mapping[str, Settings], ratios: list[float], steps: list[int], seeds: list[int]) -> None:
    """Prints a Markdown table, a row as soon as it is known."""
    static = read("digits-dit")
    loss = loss_of(executor(static.build(), "masked"))
    print(f"static model: held-out loss {loss:.5f}, Fréchet {seen(static, 0)['frechet']:.2f}\n")
    names = ("variant", "lambda", "steps", "ratio reached", "loss over static", "Fréchet", "recognised", "s/step")
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        for count in steps:
            for ratio in ratios:
                for variant, settings in variants.items():
                    found = [measure(settings, ratio, count, seed, Path(name)) for seed in seeds]
                    columns = {key: [one[key] for one in found] for key in found[0]}
                    cells = (
                        _spread(columns["ratio"], 3),
                        _spread([value / loss for value in columns["loss"]], 3),
                        _spread(columns["frechet"], 2),
                        f"{100 * sum(columns['recognised']) / len(found):.1f} %",
                        f"{sum(columns['seconds']) / len(found):.2f}",
                    )
                    share = f"{count} ({100 * count / PRETRAINING_STEPS:.1f} %)"
                    print(f"| {variant} | {ratio} | {share} | {' | '.join(cells)} |", flush=True)


def calibration(ratios: list[float]) -> None:
    """Prints runs that keep the training noise to the end, whose ratio therefore misses lambda, before and after
    `--calibrate`."""
    static = loss_of(executor(read("digits-dit").build(), "masked"))
    print("| lambda | | ratio | loss over static | Fréchet | recognised |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dydit_cli.convert("digits-dit", folder / "start")
        for ratio in ratios:
            settings = {"routing.noise_off_steps": 0}
            dydit_cli.finetune(folder / "start", folder / "run", flops_ratio=ratio, settings=settings, device="cpu", force=True)
            before = read(folder / "run")
            after, report = calibrate(before, ratio, device="cpu")
            for kind, checkpoint, reached in (
                ("before", before, report.ratio_before),
                (f"shifted by {report.shift:+.3g}", after, report.ratio_after),
            ):
                loss = loss_of(executor(checkpoint.build(), "sparse")) / static
                figures = seen(checkpoint, 0)
                print(
                    f"| {ratio} | {kind} | {reached:.4f} | {loss:.3f} | {figures['frechet']:.2f} | "
                    f"{100 * figures['recognised']:.1f} % |",
                    flush=True,
                )


def _spread(values: list[float], digits: int) -> str:
    mean = sum(values) / len(values)
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["ablations", "budgets", "complete", "reached", "calibration"])
    parser.add_argument("--seeds", default="0")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if options.table == "ablations":
        rows(ABLATIONS, [0.5], [300], seeds)
    elif options.table == "budgets":
        rows(BUDGETS, [0.5, 0.3], [36, 120, 360], seeds)
    elif options.table == "complete":
        rows(COMPLETE, [0.5], [300], seeds)
    elif options.table == "calibration":
        calibration([0.5, 0.3])
    else:
        rows({"the recipe": {}}, [0.7, 0.5, 0.3], [300], seeds)


if __name__ == "__main__":
    main()
