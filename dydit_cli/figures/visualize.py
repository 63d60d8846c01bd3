"""`dydit visualize`: the figures of a profile, and of a training run, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dydit_cli.errors import DyditError
from dydit_cli.figures import architecture, flops, style, tokens, training
from dydit_cli.files import check_output
from dydit_cli.profiling.profile import Profile, read_profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: dict[str, Callable[[Profile], Figure]] = {
    "architecture": architecture.draw_architecture,
    "tokens": tokens.draw_tokens,
    "flops": flops.draw_flops,
}
TRAINING = "training"  # drawn from a run's metrics, not from a profile


def visualize(profile: str | Path | Profile, figure: str, out: str | Path, *, force: bool = False) -> Path:
    """Draws `figure` (architecture, tokens or flops) of a profile folder into the file `out`, PNG, SVG or PDF by ending;
    `training` is drawn of the folder of a training run, given in the profile's place.

    Raises `DyditError` for an unknown figure or ending, an existing `out` (without `force`) or a folder that is no profile,
    or no run.
    """
    if figure not in (*FIGURES, TRAINING):
        raise DyditError(f"no figure {figure!r}; choose one of {', '.join((*FIGURES, TRAINING))}")
    out = prepare(out, force)
    if figure == TRAINING:
        if isinstance(profile, Profile):
            raise DyditError("the training figure is drawn of a training run's folder, not of a profile")
        metrics = training.read_metrics(profile)
        save_as(lambda: training.draw_training(metrics), out)
        return out
    loaded = profile if isinstance(profile, Profile) else read_profile(profile)
    save_as(lambda: FIGURES[figure](loaded), out)
    return out


def prepare(out: str | Path, force: bool) -> Path:
    """`out`, where a figure can be written; raises `DyditError` for another ending or an existing file."""
    style.check_ending(out)
    return check_output(out, force)


def save_as(draw: Callable[[], Figure], out: str | Path) -> None:
    """Draws in the house's style and writes."""
    with style.styled():
        style.save(draw(), out)
