"""Every figure by its name: what it takes, what a reader sees in it, its numbers as a table, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from dydit_cli.artifacts.bench import read_bench
from dydit_cli.artifacts.losses import SUMMARY_FILE as LOSSES_FILE
from dydit_cli.artifacts.losses import read_losses
from dydit_cli.artifacts.profile import SUMMARY_FILE, read_profile
from dydit_cli.artifacts.run import METRICS_FILE, read_metrics
from dydit_cli.artifacts.samples import ARRAY_FILE
from dydit_cli.artifacts.study import TABLE_FILE, read_study
from dydit_cli.figures import architecture, flops, losses, samples, time, tokens, tradeoff, training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Takes = Literal["profile", "run", "study", "samples", "losses", "bench"]


@dataclass(frozen=True)
class Source:
    """What figures are drawn from. `made_by` is the command that writes it; `mark` the file that tells such a folder
    (for `bench` the ending of the file itself); `read` takes the paths, of which only `samples` knows several."""

    made_by: str
    mark: str
    read: Callable[[Sequence[Path]], Any]


@dataclass(frozen=True)
class FigureKind:
    """`table` and `draw` take what `SOURCES[takes].read` returns; `table` holds all numbers that `draw` shows.

    `title` is a heading and `caption` one or two sentences on what a reader sees.
    """

    takes: Takes
    title: str
    caption: str
    table: Callable[[Any], pd.DataFrame]
    draw: Callable[[Any], Figure]


SOURCES: dict[Takes, Source] = {
    "profile": Source("dydit profile CKPT --out DIR", SUMMARY_FILE, lambda paths: read_profile(paths[0])),
    "run": Source("dydit finetune", METRICS_FILE, lambda paths: read_metrics(paths[0])),
    "losses": Source("dydit losses SMALL LARGE --out DIR", LOSSES_FILE, lambda paths: read_losses(paths[0])),
    "study": Source("dydit study RECIPE --out DIR", TABLE_FILE, lambda paths: read_study(paths[0])),
    "samples": Source("dydit study, or dydit sample", ARRAY_FILE, samples.read_rows),
    "bench": Source("dydit bench --json > bench.json", ".json", lambda paths: read_bench(paths[0])),
}

FIGURES: dict[str, FigureKind] = {
    "architecture": FigureKind(
        "profile",
        "What runs at which timestep",
        "Each row is an attention head (left) or a channel group of an MLP (right), each column a sampling step from noise "
        "to image; coloured where it runs. The lines above are the active share of all of them.",
        architecture.architecture_table,
        architecture.draw_architecture,
    ),
    "tokens": FigureKind(
        "profile",
        "Where in the images the compute went",
        "Each generated image beside how often each of its tokens went through an MLP: summed over all sampling steps, "
        "and in four phases from noise to image.",
        tokens.tokens_table,
        tokens.draw_tokens,
    ),
    "flops": FigureKind(
        "profile",
        "MACs at every timestep",
        "The multiply-accumulates of one forward pass at each sampling step, by part, under the static model's line; the "
        "dotted line is the mean over the steps.",
        flops.flops_table,
        flops.draw_flops,
    ),
    "training": FigureKind(
        "run",
        "How the training went",
        "The share of the static model's MACs that the routers switched on, against its target, and the diffusion loss of "
        "each batch.",
        training.training_table,
        training.draw_training,
    ),
    "loss-gap": FigureKind(
        "losses",
        "The loss of a small and a large model at every timestep",
        "Above, the mean squared error of the predicted noise on real images, from noise to image; below, how much more the "
        "smaller model loses than the larger one: where it is near zero, capacity is not what is lacking.",
        losses.loss_gap_table,
        losses.draw_loss_gap,
    ),
    "loss-maps": FigureKind(
        "losses",
        "Where in the image the loss is",
        "Real images beside the loss of each of their patches at several timesteps, each map from its own least to its own "
        "greatest value.",
        losses.loss_maps_table,
        losses.draw_loss_maps,
    ),
    "tradeoff": FigureKind(
        "study",
        "Quality against compute",
        "Each method's quality over the share of the static model's MACs that it needs, means and standard deviations over "
        "seeds; the star is the static model, its level dotted, the diamond the same model fine-tuned as long.",
        tradeoff.tradeoff_table,
        tradeoff.draw_tradeoff,
    ),
    "samples": FigureKind(
        "samples",
        "The same seeds through each model",
        "Each column is one noise and class, each row a model; of a study's methods those that need about the same MACs.",
        samples.samples_table,
        samples.draw_samples,
    ),
    "time": FigureKind(
        "bench",
        "Where the time goes",
        "Seconds of a sampling run by part, static beside sparse. The black line is where the sparse bar would end if time "
        "followed FLOPs.",
        time.time_table,
        time.draw_breakdown,
    ),
}


def figures_of(source: str | Path) -> list[str]:
    """The figures that the folder (or bench file) `source` allows, by the file that marks it."""
    path = Path(source)

    def marked(takes: Takes) -> bool:
        mark = SOURCES[takes].mark
        return path.is_file() and path.suffix == mark if mark.startswith(".") else (path / mark).is_file()

    return [name for name, kind in FIGURES.items() if marked(kind.takes)]
