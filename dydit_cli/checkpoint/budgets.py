"""Checkpoints of a range of FLOPs ratios: made from one of a single ratio, and brought to one."""

from __future__ import annotations

from dataclasses import replace

import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.lineage import SET_RATIO
from dydit_cli.errors import DyditError, naming
from dydit_cli.model.backbone import DynamicBackbone
from dydit_cli.model.config import RoutedConfig
from dydit_cli.model.families import build_shapes

BUDGETS = 5  # entries of a router's table
RISE = 3.0  # from the first to the last of a new one


def with_range(checkpoint: Checkpoint, low: float, high: float) -> Checkpoint:
    """A DyDiT of one FLOPs ratio as one of a range, which until it is trained computes the same at every ratio under 1. One of
    this range already is itself. Raises `DyditError` for one of another range."""
    config = checkpoint.config
    assert isinstance(config, RoutedConfig)
    if config.budgets:
        if (config.budgets[0], config.budgets[-1]) == (low, high):
            return checkpoint
        known = f"{config.budgets[0]:g}:{config.budgets[-1]:g}"
        raise DyditError(f"{checkpoint.path}: is of the range {known}; keep it, or begin with a DyDiT of one ratio")
    ranged = replace(config, budgets=tuple(torch.linspace(low, high, BUDGETS, dtype=torch.float64).tolist()))
    shapes = build_shapes(ranged).state_dict()
    # the more may be spent, the later the routers switch off: nothing is off yet, and so nothing changes
    rise = torch.linspace(0, RISE, BUDGETS)
    new = {name: rise[:, None].repeat(1, w.shape[1]) for name, w in shapes.items() if name not in checkpoint.weights}
    return replace(checkpoint, config=ranged, weights={**checkpoint.weights, **new})


def at_ratio(checkpoint: Checkpoint, ratio: float) -> Checkpoint:
    """A DyDiT of a range as one of the single FLOPs ratio `ratio`, which every format can hold: what its tables add goes into
    the routers' biases. Raises `DyditError` for a static model, a DyDiT of one ratio, and a ratio out of the range."""
    with naming(checkpoint.path or "a checkpoint in memory"):
        if not isinstance(checkpoint.config, RoutedConfig):
            raise DyditError("is a static model, which has no FLOPs ratio to set; convert it first: dydit convert SRC DST")
        setting = checkpoint.config.setting_for(ratio)
    model = checkpoint.build()
    assert isinstance(model, DynamicBackbone)
    with torch.no_grad():
        model.set_routers(torch.tensor([setting]))
        for router in model.routers:
            assert router.budget is not None
            assert router.budget.shift is not None
            router.last.bias.add_(router.budget.shift[0])
    tables = {name for name, _ in model.named_parameters() if ".budget." in name}
    weights = {name: w.detach() for name, w in model.state_dict().items() if name not in tables}
    step = {"action": SET_RATIO, "flops_ratio": ratio}
    config = replace(checkpoint.config, budgets=(), measured=(), allocation=())
    return replace(checkpoint, config=config, weights=weights, lineage=[*checkpoint.lineage, step])
