"""A profile's figures in the card of the checkpoint that was profiled."""

from __future__ import annotations

from pathlib import Path

from dydit_cli.checkpoint.lineage import CARD_FILE, with_figures
from dydit_cli.errors import DyditError
from dydit_cli.files import write_text
from dydit_cli.profiling.profile import Profile
from dydit_cli.units import macs, share


def add_to_card(folder: str | Path, profile: Profile) -> None:
    """Writes the section of figures into README.md of a checkpoint folder, replacing an older one.

    Raises `DyditError` where the checkpoint is no folder with a card.
    """
    path = Path(folder) / CARD_FILE
    if not path.is_file():
        raise DyditError(f"{folder}: has no {CARD_FILE} to add figures to; only checkpoint folders written by dydit have one")
    write_text(path, with_figures(path.read_text(encoding="utf-8"), card_lines(profile)))


def card_lines(profile: Profile) -> list[str]:
    """The figures and their protocol, as Markdown."""
    summary = profile.summary
    return [
        f"- static: {macs(summary['macs_static'])}, dynamic: {macs(summary['macs_dynamic'])} per forward and image, "
        f"ratio {summary['ratio']:.4f}",
        f"- active: {share(summary['active_heads_share'])} of heads, {share(summary['active_groups_share'])} of channel "
        f"groups, {share(summary['active_tokens_share'])} of tokens in the MLPs",
        f"- measured by dydit {summary['versions']['dydit']}: {summary['sampler']}, {summary['steps']} steps, cfg "
        f"{summary['cfg']:g}, {summary['images']} images, seed {summary['seed']}, {summary['dtype']}, {summary['device']}",
    ]
