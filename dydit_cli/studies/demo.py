"""`dydit demo`: the whole of it on the bundled digits model, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dydit_cli import marks
from dydit_cli.artifacts.demo import PICTURE_FILE, PROFILE_FOLDER, RECIPE_FILE, RUN_FOLDER, write_demo
from dydit_cli.artifacts.profile import Profile
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import CONFIG_FILE
from dydit_cli.checkpoint.read import read
from dydit_cli.compress.convert import convert
from dydit_cli.devices import pick_device
from dydit_cli.diffusion.generate import Progress
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.classifier import classifier, classify_samples
from dydit_cli.figures.base import figures_of
from dydit_cli.figures.samples import side_by_side
from dydit_cli.figures.visualize import visualize
from dydit_cli.files import Resumable, atomic_file, check_output, locked, write_json
from dydit_cli.model.caching import NONE, CacheOptions
from dydit_cli.pixels import save_png
from dydit_cli.profiling.profile import profile
from dydit_cli.provenance import made_by
from dydit_cli.reports.report import report
from dydit_cli.train.recipe import Recipe, flat, for_model, read_recipe, with_settings
from dydit_cli.train.run import finetune
from dydit_cli.train.run_folder import RunFolder

BUNDLED = "digits-dit"

RECIPE = "digits/finetune"

REPORT_FILE, UNFINISHED_FILE, FORMAT = "report.html", marks.UNFINISHED_DEMO, "dydit-demo"

PROFILED_IMAGES = 20

CACHE = "taylorseer:4:1"  # of the closing table's last row

CACHED_FOLDER, CACHED_IMAGES = "profile-cached", 2  # its profile: which steps are computed does not depend on the image

SAVE_EVERY = 50  # steps: a small state, and no more than half a minute of training to lose

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
    """Converts, fine-tunes, profiles, samples and compares; writes everything, demo.json and report.html into the folder
    `out`. The same call continues one that was interrupted: what is whole stays.

    Returns what demo.json holds: `static`, `dynamic` and `cached`, the DyDiT with a `cache`, each with `macs` (mean per forward
    and image), `recognised` (share of its samples) and `seconds` (of sampling them); `ratio`; the protocol; and the `seconds`
    of this call. Raises `DyditError` where `out` is anything but an unfinished demo with the same settings (without `force`).
    """
    start, out, chosen = time.perf_counter(), Path(out), pick_device(device)
    recipe = recipe or read_recipe(RECIPE)
    often = min(SAVE_EVERY, recipe.train.save_every)
    static = read(BUNDLED)
    # with what is left to the model filled in, as a finished run holds it
    recipe = for_model(with_settings(recipe, {"train.seed": seed, "train.save_every": often}), static.config)
    ready = settings.for_model(static.config)
    sampling = {**ready.protocol(), "clip": settings.clip}
    wanted = {"images": images, "seed": seed, "device": chosen.type, **flat({"sampling": sampling, **recipe.model_dump()})}
    unfinished = Resumable(out, UNFINISHED_FILE, FORMAT, "an unfinished demo")

    def sampled(progress: Progress) -> None:
        on_work(progress.work, "")

    def stage(what: str, total: int, unit: str, whole: bool, make: Callable[[], object]) -> None:
        on_stage(what, total, unit)
        if not whole:
            make()
        if whole or total == 1:
            on_work(total, "")

    with locked(out):
        if force:
            check_output(out, force)
        else:
            unfinished.check(wanted)
        unfinished.begin({"format": FORMAT, **wanted}, force)
        write_json(out / RECIPE_FILE, recipe.model_dump())
        run, profiled = RunFolder(out / RUN_FOLDER), out / PROFILE_FOLDER

        whole = (out / "converted" / CONFIG_FILE).is_file()
        stage("convert", 1, "model", whole, lambda: convert(BUNDLED, out / "converted", seed=seed))

        def tune() -> None:
            finetune(
                out / "converted",
                run.path,
                recipe=recipe,
                device=device,
                on_begin=lambda step: on_work(step, ""),
                on_step=lambda m: on_work(1, f"loss {m.mse + m.vb:.3f}, ratio {m.ratio:.3f} (target {m.target:.3f})"),
            )

        stage("fine-tune", recipe.train.steps, "steps", run.finished(recipe), tune)

        def count() -> None:
            options: dict[str, Any] = {"images": PROFILED_IMAGES, "settings": settings, "seed": seed, "device": device}
            profile(run.path, profiled, on_progress=sampled, **options)

        def count_cached() -> None:
            options: dict[str, Any] = {"images": CACHED_IMAGES, "settings": settings, "seed": seed, "device": device}
            profile(run.path, out / CACHED_FOLDER, cache=CacheOptions.parse(CACHE), on_progress=sampled, **options)

        whole = Profile.fits(profiled)
        stage("profile", PROFILED_IMAGES * ready.work, "image-steps", whole, count)
        whole = Profile.fits(out / CACHED_FOLDER)
        stage("profile cached", CACHED_IMAGES * ready.work, "image-steps", whole, count_cached)
        measured, cached = Profile.read(profiled), Profile.read(out / CACHED_FOLDER)
        macs = {name: measured.summary[f"macs_{name}"] for name in ("static", "dynamic")}
        macs["cached"] = cached.summary["macs_dynamic"]

        samples: dict[str, Tensor] = {}
        rows: dict[str, dict[str, Any]] = {}
        tuned_model = read(run.path)
        for name, checkpoint, spelled in (
            ("static", static, NONE), ("dynamic", tuned_model, NONE), ("cached", tuned_model, CACHE),
        ):  # fmt: skip
            file = out / f".{name}.npz"

            def sample(checkpoint: Checkpoint = checkpoint, file: Path = file, spelled: str = spelled) -> None:
                model, cache = checkpoint.build().to(chosen), CacheOptions.parse(spelled)
                result = classify_samples(model, images=images, settings=settings, seed=seed, cache=cache, on_progress=sampled)
                with atomic_file(file) as temporary:
                    np.savez(temporary, samples=result.samples, recognised=result.class_accuracy, seconds=result.seconds)

            stage(f"sample {name}", images * ready.work, "image-steps", file.is_file(), sample)
            with np.load(file) as arrays:
                samples[name] = torch.from_numpy(arrays["samples"])
                figures = {name: float(arrays[name]) for name in ("recognised", "seconds")}
            rows[name] = {"macs": macs[name], **figures}
        rows["cached"]["cache"] = CACHE

        drawn = figures_of(measured)
        on_stage("draw", len(drawn) + 1, "figures")
        for figure in drawn:
            visualize(measured, figure.name, out / f"{figure.name}.png", force=True)
            on_work(1, "")
        save_png(side_by_side({"static DiT": samples["static"], "DyDiT": samples["dynamic"]}), out / PICTURE_FILE)
        on_work(1, "")

        tuned = run.last_metrics()
        result = {
            **made_by(),
            **rows,
            "ratio": measured.summary["ratio"],
            "flops_ratio": recipe.routing.flops_ratio,
            "finetune_steps": recipe.train.steps,
            "finetune_share": recipe.train.steps / pretraining_steps(static.lineage),
            "finetune_seconds": tuned.seconds if tuned else None,
            "classifier_accuracy": classifier().accuracy,
            "images": images,
            "sampler": ready.sampler,
            "steps": ready.steps,
            "cfg": ready.cfg,
            "seed": seed,
            "device": chosen.type,
            "seconds": time.perf_counter() - start,
        }
        write_demo(result, out)
        on_stage("report", 1, "page")
        report(out, out / REPORT_FILE, force=True)
        on_work(1, "")
        for file in (*(out / f".{name}.npz" for name in rows), out / UNFINISHED_FILE):
            file.unlink()
    return result


def pretraining_steps(lineage: list[dict[str, Any]]) -> int:
    """Read off a static model's lineage."""
    steps = sum(int(entry["steps"]) for entry in lineage if entry.get("action") == "pretrain")
    if not steps:
        raise DyditError(f"{BUNDLED}: its lineage names no pre-training steps; reinstall dydit")
    return steps
