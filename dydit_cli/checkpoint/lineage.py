"""Where a checkpoint comes from: an entry for every step, and a card for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.files import sha256
from dydit_cli.model.macs import static_macs
from dydit_cli.provenance import made_by
from dydit_cli.units import macs
from dydit_cli.version import __version__

CARD_FILE = "README.md"

FIGURES_START, FIGURES_END = "<!-- figures of dydit profile -->", "<!-- end of figures -->"

SET_RATIO = "set FLOPs ratio"  # the action that makes a DyDiT of a range one of a single ratio

APART = ("action", "command")  # of an entry, what is shown beside its facts

LICENCE = (
    "Weights that began at the DiT authors' release are CC-BY-NC 4.0, and so is what was made from them: not for "
    "commercial use. dydit cannot tell where weights that it did not train began; whoever passes them on must."
)


def entry(action: str, source: Checkpoint | None = None, **facts: Any) -> dict[str, Any]:
    """One step of a lineage: the action, what it started from (path, format and sha256 of its weights), the command that is
    running, and the tool."""
    origin: dict[str, Any] = {}
    if source is not None and source.path is not None:
        origin = {"source": source.path, "found": source.found}
        if source.file is not None:
            origin["sha256"] = sha256(source.file)
    return {"action": action, **origin, **facts, **made_by(), "dydit": __version__}


def asked_ratio(lineage: list[dict[str, Any]]) -> float | None:
    """The lambda of the last fine-tuning or calibration in a checkpoint's lineage; None where there was none."""
    found = [entry["flops_ratio"] for entry in lineage if "flops_ratio" in entry]
    return float(found[-1]) if found else None


def set_ratio(lineage: list[dict[str, Any]]) -> float | None:
    """The FLOPs ratio that a DyDiT of a range is set to; None where a lineage does not end so."""
    return float(lineage[-1]["flops_ratio"]) if lineage and lineage[-1]["action"] == SET_RATIO else None


def write_card(checkpoint: Checkpoint) -> str:
    """README.md of a checkpoint folder."""
    config = checkpoint.config
    what = f"A {'Dynamic' if config.dynamic else 'static'} Diffusion Transformer ({config.model_name})"
    count = sum(w.numel() for w in checkpoint.weights.values())
    return "\n".join(
        [
            f"# {config.size_name}",
            "",
            f"{what} of {count:,} parameters: depth {config.depth}, width {config.hidden_size}, {config.num_heads} heads, "
            f"{config.num_tokens} tokens ({config.patches}), {config.classes}. With everything on it costs "
            f"{macs(static_macs(config))} per forward and image.",
            "",
            "Written by dydit; `dydit inspect` on this folder tells more, `dydit sample` draws from it.",
            "",
            "## How it was made",
            "",
            *[
                "\n   ".join([f"{i}. {describe(step)}", *(f"`{line}`" for line in step.get("command", "").splitlines())])
                for i, step in enumerate(checkpoint.lineage, 1)
            ],
            *([] if checkpoint.lineage else ["Unknown."]),
            "",
            "## Licence",
            "",
            LICENCE,
            "",
        ]
    )


def describe(step: dict[str, Any]) -> str:
    """`finetune: source a, steps 300`."""
    facts = {key: str(value)[:12] if key == "sha256" else value for key, value in step.items() if key not in APART}
    return f"{step.get('action', '?')}: " + ", ".join(f"{key} {value}" for key, value in facts.items())


def with_figures(card: str, lines: list[str]) -> str:
    """`card` with the section of a profile's figures added, or replaced."""
    section = "\n".join([FIGURES_START, "## Figures", "", *lines, FIGURES_END])
    if FIGURES_START in card and FIGURES_END in card:
        before, rest = card.split(FIGURES_START, 1)
        return before + section + rest.split(FIGURES_END, 1)[1]
    return card.rstrip("\n") + "\n\n" + section + "\n"


def figures_in(card: Path) -> list[str] | None:
    """The lines of figures in a card's file, as `with_figures` wrote them; None where there are none."""
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if FIGURES_START not in text or FIGURES_END not in text:
        return None
    section = text.split(FIGURES_START, 1)[1].split(FIGURES_END, 1)[0]
    return section.strip().removeprefix("## Figures").strip().splitlines()
