"""The registry of judges: the networks in whose features samples are compared, by what `--features` calls them.

A judge is a file beside this one that returns an `Extractor`, and an entry here. Nothing of torch is imported before one is
opened, so that help is quick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from dydit_cli.bundled import WEIGHTS
from dydit_cli.errors import DyditError

if TYPE_CHECKING:
    import torch

    from dydit_cli.evaluate.features import Extractor

ENDING = "-features"  # of a bundled network's folder, behind its data set's name

NETWORKS = tuple(sorted(folder.name.removesuffix(ENDING) for folder in WEIGHTS.glob(f"*{ENDING}")))  # by their data sets


@dataclass(frozen=True)
class Judge:
    """`summary` is what help says of it in brackets; `open(weights, device)` returns its network.

    `weights` is the file that `--inception` names, None without; only a judge that `takes_weights` gets one. `open` raises
    `DyditError` where the network's package or its weights are missing.
    """

    name: str
    summary: str
    open: Callable[[Path | None, torch.device], Extractor]
    takes_weights: bool = False


def _inception(weights: Path | None, device: torch.device) -> Extractor:
    from dydit_cli.evaluate.inception import inception_extractor

    return inception_extractor(weights, device)


def _efficientnet(weights: Path | None, device: torch.device) -> Extractor:
    from dydit_cli.evaluate.efficientnet import efficientnet_extractor

    return efficientnet_extractor(device)


def _network(name: str, weights: Path | None, device: torch.device) -> Extractor:
    from dydit_cli.evaluate.feature_network import network_extractor

    return network_extractor(name)


FEATURES = {
    judge.name: judge
    for judge in (
        Judge("inception", "FID and its siblings", _inception, takes_weights=True),
        Judge("efficientnet", "of ImageNet, for small pictures", _efficientnet),
        *(Judge(name, "the set's own", partial(_network, name)) for name in NETWORKS),
    )
}


def find_judge(features: str) -> Judge:
    """Raises `DyditError` for an unknown name."""
    judge = FEATURES.get(features)
    if judge is None:
        raise DyditError(f"no features {features!r}; choose one of {', '.join(FEATURES)}")
    return judge


def features_help() -> str:
    """All of them for a command's help, in a line."""
    groups = [([judge.name for judge in judges], summary) for summary, judges in groupby(FEATURES.values(), _summary)]
    return ", ".join(f"{', '.join(names)} ({summary})" for names, summary in groups) + "."


def _summary(judge: Judge) -> str:
    return judge.summary
