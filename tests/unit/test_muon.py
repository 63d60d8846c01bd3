"""Muon's steps are PyTorch's on matrices, and AdamW's on all else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dydit_cli.model.families.dit import DyDiT
from dydit_cli.train.muon import Muon, orthogonal
from dydit_cli.train.recipe import with_settings
from dydit_cli.train.step import make_optimizer
from tests.unit.test_train import quick


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_a_matrix_comes_near_to_its_orthogonal_part(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    ours = orthogonal(matrix)
    assert ours.shape == shape
    values = torch.linalg.svdvals(ours)
    assert values.min() > 0.6
    assert values.max() < 1.25
    assert nn.functional.cosine_similarity(ours.flatten(), (u @ v).flatten(), dim=0) > 0.97


@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_steps_are_pytorchs(shape: tuple[int, int]) -> None:
    """Theirs are in bfloat16, of which the tolerance is."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip(f"PyTorch {torch.__version__} has no Muon to compare with")
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = Muon([{"params": [mine], "orthogonal": True}], lr=0.1, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        grad = torch.randn(shape, generator=generator)
        mine.grad, theirs.grad = grad.clone(), grad.clone()
        ours.step()
        reference.step()
        torch.testing.assert_close(mine - start, theirs - start, atol=0.01, rtol=0.02)
    assert (mine - start).abs().mean() > 0.05  # well over the tolerance


def test_what_is_no_matrix_of_a_block_has_adamws_steps(tiny_dynamic: DyDiT) -> None:
    recipe = with_settings(quick(), {"routing.router_lr": 0.01})
    muon = with_settings(recipe, {"train.optimizer": "muon"})
    start = {name: p.detach().clone() for name, p in tiny_dynamic.named_parameters()}
    after = []
    for one in (recipe, muon):
        tiny_dynamic.load_state_dict({**tiny_dynamic.state_dict(), **start})
        optimizer = make_optimizer(tiny_dynamic, one)
        for i, (_, p) in enumerate(tiny_dynamic.trainable()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        optimizer.step()
        after.append({name: p.detach().clone() for name, p in tiny_dynamic.trainable()})
    differ = {name for name, p in after[0].items() if not torch.equal(p, after[1][name])}
    assert differ == {
        name
        for name, p in tiny_dynamic.trainable()
        if name.startswith("blocks.") and p.ndim == 2 and not tiny_dynamic.config.is_router(name)
    }
    assert all(not torch.equal(p, start[name]) for name, p in after[1].items())
