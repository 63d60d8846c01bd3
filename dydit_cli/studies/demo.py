"""`dydit demo`: the whole of it on the bundled digits model, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from dydit_cli.artifacts.demo import PICTURE_FILE, PROFILE_FOLDER, RECIPE_FILE, RUN_FOLDER, write_demo
from dydit_cli.checkpoint.read import read
from dydit_cli.compress.convert import convert
from dydit_cli.devices import pick_device
from dydit_cli.diffusion.sampler import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.classifier import classifier, judge
from dydit_cli.figures.base import figures_of
from dydit_cli.figures.samples import side_by_side
from dydit_cli.figures.visualize import visualize
from dydit_cli.files import check_output, write_json
from dydit_cli.pixels import save_png
from dydit_cli.profiling.profile import profile
from dydit_cli.provenance import made_by
from dydit_cli.reports.report import report
from dydit_cli.train.recipe import Recipe, read_recipe, with_settings
from dydit_cli.train.run import finetune

BUNDLED = "digits-dit"

RECIPE = "digits/finetune"

REPORT_FILE = "report.html"

PROFILED_IMAGES = 20

OnStage = Callable[[str, int, str], None]

OnWork = Callable[[int, str], None]


def demo(
    out: str | Path,
    *,
    images: int = 256,
    settings: SamplerSettings = SamplerSettings(),
    recipe: Recipe | None = None,
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
    on_stage: OnStage = lambda what, total, unit: None,
    on_work: OnWork = lambda amount, note: None,
) -> dict[str, Any]:
    """Converts, fine-tunes, profiles, draws and compares; writes everything, demo.json and report.html into the folder `out`.

    Returns what demo.json holds: `static` and `dynamic`, each with `macs` (mean per forward and image), `recognised`
    (share of its samples) and `seconds` (of sampling them); `ratio`; and the protocol.
    """
    start = time.perf_counter()
    out = check_output(out, force)
    place = pick_device(device)
    recipe = with_settings(recipe or read_recipe(RECIPE), {"train.seed": seed})
    write_json(out / RECIPE_FILE, recipe.model_dump())
    static = read(BUNDLED)

    on_stage("convert", 1, "model")
    convert(BUNDLED, out / "converted", seed=seed, force=force)
    on_work(1, "")

    on_stage("fine-tune", recipe.train.steps, "steps")
    tuned = finetune(
        out / "converted",
        out / RUN_FOLDER,
        recipe=recipe,
        device=device,
        force=force,
        on_step=lambda m: on_work(1, f"loss {m.mse + m.vb:.3f}, ratio {m.ratio:.3f} (target {m.target:.3f})"),
    )

    on_stage("profile", PROFILED_IMAGES * settings.steps, "image-steps")
    measured = profile(
        out / RUN_FOLDER,
        out / PROFILE_FOLDER,
        images=PROFILED_IMAGES,
        settings=settings,
        seed=seed,
        device=device,
        force=force,
        on_progress=lambda p: on_work(p.batch, ""),
    )

    samples: dict[str, Tensor] = {}
    rows: dict[str, dict[str, float]] = {}
    for name, checkpoint, macs in (
        ("static", static, measured.summary["macs_static"]),
        ("dynamic", read(out / RUN_FOLDER), measured.summary["macs_dynamic"]),
    ):
        on_stage(f"sample {name}", images * settings.steps, "image-steps")
        model = checkpoint.build().to(place)
        judged = judge(model, images=images, settings=settings, seed=seed, on_progress=lambda p: on_work(p.batch, ""))
        samples[name] = judged.samples
        rows[name] = {"macs": macs, "recognised": judged.recognised, "seconds": judged.seconds}

    figures = figures_of(measured)
    on_stage("draw", len(figures) + 1, "figures")
    for figure in figures:
        visualize(measured, figure.name, out / f"{figure.name}.png", force=True)
        on_work(1, "")
    save_png(side_by_side({"static DiT": samples["static"], "DyDiT": samples["dynamic"]}), out / PICTURE_FILE)
    on_work(1, "")

    result = {
        **made_by(),
        **rows,
        "ratio": measured.summary["ratio"],
        "flops_ratio": recipe.routing.flops_ratio,
        "finetune_steps": tuned.steps,
        "finetune_share": tuned.steps / pretraining_steps(static.lineage),
        "finetune_seconds": tuned.seconds,
        "classifier_accuracy": classifier().accuracy,
        "images": images,
        "sampler": settings.sampler,
        "steps": settings.steps,
        "cfg": settings.cfg,
        "seed": seed,
        "device": place.type,
        "seconds": time.perf_counter() - start,
    }
    write_demo(result, out)
    on_stage("report", 1, "page")
    report(out, out / REPORT_FILE, force=True)
    on_work(1, "")
    return result


def pretraining_steps(lineage: list[dict[str, Any]]) -> int:
    """Read off a static model's lineage."""
    steps = sum(int(entry["steps"]) for entry in lineage if entry.get("action") == "pretrain")
    if not steps:
        raise DyditError(f"{BUNDLED}: its lineage names no pre-training steps; reinstall dydit")
    return steps
