"""Fine-tune a DyDiT to a FLOPs ratio. A static model is tuned as it is: the control.

Ctrl-C saves; the same command again, or --resume, continues to the very same end. The EMA weights are the result.
Several processes, as `accelerate launch -m dydit_cli finetune ...` starts them, share each batch.

Example: `dydit finetune runs/digits-dydit --flops-ratio 0.5 --data digits --out runs/digits-0.5`
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from dydit_cli.cli import console, options
from dydit_cli.cli.build import Typed
from dydit_cli.cli.training import finish, interruptible, only_resume, train
from dydit_cli.errors import DyditError
from dydit_cli.options import Opt, parse_seed

if TYPE_CHECKING:
    from dydit_cli.checkpoint.checkpoint import Checkpoint

SHARED = PLANNED = True


def parse_ratio(text: str) -> float | tuple[float, float]:
    """`0.5`, or `0.3:1.0`; raises `DyditError` for anything else."""
    try:
        ratios = [float(part) for part in text.split(":")]
    except ValueError:
        ratios = []
    if len(ratios) not in (1, 2):
        raise DyditError(f"--flops-ratio {text!r}: give one, such as 0.5, or a range, such as 0.3:1.0")
    return ratios[0] if len(ratios) == 1 else (ratios[0], ratios[1])


def finetune(
    typed: Typed,
    checkpoint: Annotated[str | None, options.ANY_CKPT] = None,
    out: options.RunOut = None,
    flops_ratio: Annotated[
        float | tuple[float, float] | None,
        Opt(
            "The share of the static FLOPs to come down to; with LOW:HIGH, such as 0.3:1.0, one model for every share between.",
            ("--flops-ratio", "--lambda"),
            metavar="R",
            default="the recipe's, 0.5",
            of=str,
            parse=parse_ratio,
        ),
    ] = None,
    steps: options.TrainSteps = None,
    data: Annotated[
        str | None,
        Opt(
            "digits, fashion, idx:PATH, imagefolder:PATH or latents:PATH.",
            default="RECIPE's, or what CKPT was trained on",
        ),
    ] = None,
    recipe: Annotated[str | None, Opt("A TOML recipe.", default="DATA/finetune", complete=options.recipe_names)] = None,
    lr: Annotated[float | None, Opt("The model's learning rate.", default="the recipe's")] = None,
    router_lr: Annotated[float | None, Opt("The routers' learning rate.", default="the recipe's")] = None,
    batch_size: Annotated[int | None, Opt("Images a step.", default="the recipe's")] = None,
    seed: Annotated[
        int | None, Opt("The same seed gives the same result.", metavar="N", default="the recipe's", of=int, parse=parse_seed)
    ] = None,
    setting: options.Settings = (),
    lora: Annotated[
        int | None,
        Opt("Train adapters of this rank (LoRA) and the routers alone; the other weights stay.", metavar="RANK", min=1),
    ] = None,
    adapter_only: Annotated[bool, Opt("With --lora: write the adapter alone, not the model with it merged in.")] = False,
    num_classes: Annotated[int | None, Opt("Another number of classes: draws a new label table.", metavar="N")] = None,
    calibrate: Annotated[bool, Opt("Then shift the routers so that a sampling run has the FLOPs ratio, within 0.005.")] = False,
    resume: options.Resume = None,
    track: options.Track = None,
    *,
    loading: options.LoadingWithoutRatio,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.distributed import is_main
    from dydit_cli.train.recipe import with_settings
    from dydit_cli.train.run import resolve_recipe, tuned_start, unfinished

    named = {"train.lr": lr, "routing.router_lr": router_lr, "train.batch_size": batch_size, "train.seed": seed}
    named["lora.rank"] = lora
    values = {key: value for key, value in named.items() if value is not None}
    at_end = ({"routing.calibrate": True} if calibrate else {}) | ({"lora.merge": False} if adapter_only else {})
    if resume is not None:
        only_resume(typed, "CKPT", "--calibrate", "--adapter-only", "--steps")
        more_steps = {} if steps is None else {"train.steps": steps}
        folder, spec = resume, unfinished(resume, checkpoint, {**at_end, **more_steps})
    elif checkpoint is None or out is None:
        raise DyditError(f"{'CKPT' if checkpoint is None else '--out'} is missing (see dydit finetune --help)")
    else:
        start = options.read(checkpoint, loading)
        if not (data or recipe or start.trained_on):
            check_digits_fit(checkpoint, start, num_classes)
        resolved = resolve_recipe(
            recipe, flops_ratio=flops_ratio, steps=steps, data=data, settings=setting, trained_on=start.trained_on
        )
        resolved = with_settings(resolved, {**values, **at_end}, "options")
        folder, spec = out, tuned_start(start, resolved, loading, num_classes)
    if not spec.start.config.dynamic and is_main():
        console.note(
            f"{checkpoint or folder} is a static model: tuning it as it is, without a FLOPs target "
            "(dydit convert makes it dynamic)"
        )
    if num_classes is not None and is_main():
        console.note(f"the label table is drawn anew for {num_classes} classes; the null class keeps its row")
    with interruptible() as stop:
        result = train("finetune", spec, folder, device, force, track, stop)
        last = result.last
        more: dict[str, Any] = {"target": last.target, "training_ratio": last.ratio} if last else {}
        if result.calibration is not None:
            figures = result.calibration
            more["calibration"] = figures.to_dict()
            console.note(
                f"calibrated: ratio of a sampling run {figures.ratio_before:.4f} before, {figures.ratio_after:.4f} after; "
                f"every router shifted by {figures.shift:+g}"
            )
        parameters = {"parameters": result.parameters, "trained_parameters": result.trained_parameters}
        if result.main and result.lora is not None:
            share = result.trained_parameters / result.parameters
            console.note(f"trained {result.trained_parameters:,} of {result.parameters:,} parameters ({share:.2%})")
        finish("finetune", result, folder, stop, json, **parameters, **more)
        apart = result.lora is not None and not spec.recipe.lora.merge
        what = f"{spec.start.path or 'CKPT'} --adapter {folder}" if apart else str(folder)
        if result.main and not json and last and last.ratio is not None:
            console.say(f"next: dydit profile {what} --out DIR (measures the ratio without the training noise)")


def check_digits_fit(name: str, start: Checkpoint, num_classes: int | None) -> None:
    """Raises `DyditError` for a model that cannot be tuned on what is taken where nothing tells its data."""
    from dydit_cli.data.load import load_data

    digits = load_data("digits")
    try:
        digits.check(start.config if num_classes is None else replace(start.config, num_classes=digits.num_classes))
    except DyditError:
        raise DyditError(
            f"{name}: does not tell what it was trained on; name its data with --data, such as latents:DIR, and a recipe "
            "with --recipe, such as those in recipes/"
        ) from None
