"""Width routers that begin where heads and groups matter least."""

from __future__ import annotations

import torch
from torch import nn

from dydit_cli.data.load import load_data
from dydit_cli.model.families.dit import DyDiT
from dydit_cli.model.families.dit_blocks import DynamicBlock
from dydit_cli.model.planning import width_masks
from dydit_cli.train.loop import train
from dydit_cli.train.router_init import measure_importance, start_by_importance
from tests.conftest import randomize
from tests.unit.test_train import digits_dydit, quick

DATA = load_data("digits")


def silenced(head: int, group: int) -> DyDiT:
    """A model whose second block's `head` and `group` add nothing to the residual stream."""
    model = randomize(digits_dydit())
    assert isinstance(model, DyDiT)
    block = model.blocks[1]
    assert isinstance(block, DynamicBlock)
    H = model.config.num_heads
    with torch.no_grad():
        block.attn.proj.weight.chunk(H, dim=1)[head].zero_()
        block.mlp.get_parameter("fc2.weight").chunk(H, dim=1)[group].zero_()
    return model


def test_what_adds_nothing_has_no_importance() -> None:
    timesteps, heads, groups = measure_importance(silenced(1, 2), DATA, 0)
    assert heads.shape == groups.shape == (len(timesteps), 2, heads.shape[2])
    assert (heads[:, 1, 1] == 0).all()
    assert (groups[:, 1, 2] == 0).all()
    assert (heads.sum(dim=0) > 0).sum() == heads.shape[1] * heads.shape[2] - 1


def test_routers_begin_at_the_share_and_spare_what_matters() -> None:
    model = silenced(1, 2)
    start_by_importance(model, quick(1, flops_ratio=0.5), DATA)
    with torch.no_grad():
        heads, groups = width_masks(model, range(1000))  # T L H
    assert heads[:, 1, 1].sum() == 0
    assert groups[:, 1, 2].sum() == 0
    assert heads[:, :, 0].all()
    share = 0.5 * (heads.mean() + groups.mean()).item()
    assert 0.5 < share < 0.85  # the common share of heads, groups and tokens whose work comes to a half


def test_training_begins_from_there_and_nothing_is_left_behind() -> None:
    model = silenced(1, 2)
    result = train(model, DATA, quick(2, start="importance", flops_ratio=0.5, hold_steps=0, warmup_steps=0))
    assert result.last is not None
    assert result.last.ratio is not None
    assert result.last.ratio < 0.95
    assert not any(module._forward_pre_hooks for module in model.modules() if isinstance(module, nn.Linear))
