"""Turns static Diffusion Transformers into dynamic ones, and makes the saved work real.

The public names are imported when they are first used, so that `import dydit_cli` and `dydit --help` load no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dydit_cli.errors import DyditError
from dydit_cli.version import __version__ as __version__

if TYPE_CHECKING:
    from dydit_cli.checkpoint.diffusers import as_diffusers
    from dydit_cli.checkpoint.export import export
    from dydit_cli.checkpoint.read import load
    from dydit_cli.compress.convert import convert
    from dydit_cli.compress.prune import prune
    from dydit_cli.figures.visualize import visualize
    from dydit_cli.flops.transformers import count_transformer
    from dydit_cli.model.families import named_config
    from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT, DyDiTConfig
    from dydit_cli.model.routing import Routing
    from dydit_cli.profiling.profile import profile
    from dydit_cli.reports.report import report
    from dydit_cli.sharing.push import push
    from dydit_cli.studies.frontier import frontier
    from dydit_cli.studies.study import study
    from dydit_cli.train.run import finetune, pretrain

_HOME = {
    "as_diffusers": "checkpoint.diffusers",
    "convert": "compress.convert",
    "count_transformer": "flops.transformers",
    "export": "checkpoint.export",
    "load": "checkpoint.read",
    "visualize": "figures.visualize",
    "DiTConfig": "model.families.dit",
    "DyDiTConfig": "model.families.dit",
    "named_config": "model.families",
    "DiT": "model.families.dit",
    "DyDiT": "model.families.dit",
    "Routing": "model.routing",
    "profile": "profiling.profile",
    "prune": "compress.prune",
    "push": "sharing.push",
    "report": "reports.report",
    "finetune": "train.run",
    "pretrain": "train.run",
    "frontier": "studies.frontier",
    "study": "studies.study",
}

__all__ = [
    "DiT",
    "DiTConfig",
    "DyDiT",
    "DyDiTConfig",
    "DyditError",
    "Routing",
    "as_diffusers",
    "convert",
    "count_transformer",
    "export",
    "finetune",
    "frontier",
    "load",
    "named_config",
    "pretrain",
    "profile",
    "prune",
    "push",
    "report",
    "study",
    "visualize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dydit_cli' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dydit_cli.{_HOME[name]}"), name)
