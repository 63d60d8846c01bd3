"""The demo's whole folder: its comparison, its profile, its run."""

from __future__ import annotations

from pathlib import Path

from dydit_cli import units
from dydit_cli.errors import DyditError
from dydit_cli.reporting.commands import as_toml, command
from dydit_cli.reporting.drawing import read_values
from dydit_cli.reporting.pictures import picture_file
from dydit_cli.reporting.profiles import profile_sections
from dydit_cli.reporting.runs import run_sections
from dydit_cli.reporting.section import TIMES, Column, Gallery, Key, Section
from dydit_cli.reporting.tables import facts_table
from dydit_cli.reporting.wording import protocol


def demo_sections(folder: Path, place: str) -> list[Section]:
    """The demo's comparison, then its profile and its run."""
    values, name = read_values(folder / "demo.json"), folder.resolve().name
    static, dynamic = values["static"], values["dynamic"]
    if not (folder / "finetuned").is_dir() or not (folder / "profile").is_dir():
        raise DyditError(f"{folder}: a demo's folder without its finetuned or profile; run dydit demo --out {folder} --force")
    speed = static["seconds"] / dynamic["seconds"]
    rows = [
        ["static DiT", static["macs"], 1.0, static["recognised"], static["seconds"]],
        [
            f"DyDiT, lambda {values['flops_ratio']:g}",
            dynamic["macs"],
            values["ratio"],
            dynamic["recognised"],
            dynamic["seconds"],
        ],
    ]
    size, prefix = units.scale_of(static["macs"])
    picture = folder / "samples.png"
    head = Section(
        name=name,
        about="demo",
        summary=(
            f"The bundled model of handwritten digits, made dynamic and fine-tuned for {values['finetune_steps']} steps "
            f"({units.share(values['finetune_share'])} of its pre-training), takes {units.macs(dynamic['macs'])} per forward "
            f"and image in place of {units.macs(static['macs'])}, a ratio of {values['ratio']:.3f}. Of {values['images']} "
            f"samples {units.share(dynamic['recognised'])} are recognised as the digit asked for, of the static model's "
            f"{units.share(static['recognised'])}; sampling took {units.seconds(dynamic['seconds'])} in place of "
            f"{units.seconds(static['seconds'])} on one {values['device']}, {speed:.2f} times as fast."
        ),
        keys=[
            Key("FLOPs ratio", f"{values['ratio']:.3f}", "of the static model's MACs"),
            Key(
                "recognised",
                units.share(dynamic["recognised"]),
                f"of {values['images']} samples; static {units.share(static['recognised'])}",
            ),
            Key("speed-up", f"{speed:.2f} {TIMES}", f"over {values['images']} samples each"),
            Key(
                "fine-tuning",
                f"{values['finetune_steps']:,}",
                f"steps, {units.share(values['finetune_share'])} of pre-training",
            ),
        ],
        protocol=protocol(
            values,
            ("images", "flops_ratio", "sampler", "steps", "cfg", "seed", "device", "finetune_steps", "classifier_accuracy"),
        ),
        tables=[
            facts_table(
                f"Static and dynamic model on handwritten digits, {values['images']} samples each",
                [
                    Column("model"),
                    Column("work", f"{prefix}MACs per forward", ".2f", 1 / size),
                    Column("ratio", "of static MACs", ".3f"),
                    Column("recognised", "%", ".1f", 100.0),
                    Column("sampling time", "s", ".1f"),
                ],
                rows,
            )
        ],
        galleries=[Gallery("The same seeds and classes through both models", [picture_file(picture, "static DiT and DyDiT")])]
        if picture.is_file()
        else (),
        commands=[command("demo", images=values["images"], seed=values["seed"], out=name)],
        files={"recipe.toml": as_toml(read_values(folder / "recipe.json"))} if (folder / "recipe.json").is_file() else {},
    )
    parts = [*profile_sections(folder / "profile", f"{place}-p"), *run_sections(folder / "finetuned", f"{place}-f")]
    return [head, *(part.as_part() for part in parts)]
