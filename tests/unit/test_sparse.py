"""Sparse execution equals masked execution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dydit_cli.errors import DyditError
from dydit_cli.model.dit import DiT
from dydit_cli.model.dydit import DyDiT, DynamicBlock
from dydit_cli.model.sparse import SparseDyDiT, executor
from tests.conftest import inputs


def set_routers(model: DyDiT, *, heads: float | None = None, groups: float | None = None, tokens: float | None = None) -> None:
    """Fixes routers to a constant logit."""
    with torch.no_grad():
        for block in model.blocks:
            assert isinstance(block, DynamicBlock)
            for layer, value in (
                (block.attn_rate.router, heads),
                (block.mlp_rate.router, groups),
                (block.token_selection.mlp_head[2], tokens),
            ):
                assert isinstance(layer, nn.Linear)
                if value is not None:
                    layer.weight.zero_()
                    layer.bias.fill_(value)


SETTINGS = {
    "as drawn": {},
    "all on": {"heads": 1.0, "groups": 1.0, "tokens": 1.0},
    "all but the always-on off": {"heads": -1.0, "groups": -1.0},
    "no token": {"tokens": -1.0},
    "every token": {"tokens": 1.0},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_sparse_equals_masked(
    tiny_dynamic: DyDiT, setting: str, batch: int, mixed: bool, dtype: torch.dtype, tolerance: float
) -> None:
    set_routers(tiny_dynamic, **SETTINGS[setting])
    model = tiny_dynamic.to(dtype)
    x, t, y = inputs(model.config, batch)
    x, t = x.to(dtype), t if mixed else t[:1].expand(batch)
    with torch.no_grad():
        expected, masks = model(x, t, y, return_routing=True)
    out, routing = SparseDyDiT(model)(x, t, y, return_routing=True)
    assert (out - expected).abs().max() < tolerance
    for name in ("heads", "groups", "tokens"):
        assert torch.equal(getattr(routing, name), getattr(masks, name))


def test_routing_of_the_fixture_is_mixed(tiny_dynamic: DyDiT) -> None:
    """Otherwise the comparison above would say little."""
    x, t, y = inputs(tiny_dynamic.config, 8)
    _, routing = tiny_dynamic(x, t, y, return_routing=True)
    for mask in (routing.heads[..., 1:], routing.groups[..., 1:], routing.tokens):
        assert 0.1 < mask.mean() < 0.9


def test_execution_by_name(tiny_dynamic: DyDiT, tiny_static: DiT) -> None:
    x, t, y = inputs(tiny_dynamic.config)
    assert executor(tiny_static, "sparse") is tiny_static
    assert executor(tiny_dynamic, "masked") is tiny_dynamic
    with torch.no_grad():
        assert torch.equal(executor(tiny_dynamic, "complete")(x, t, y), tiny_dynamic(x, t, y, complete=True))
    with pytest.raises(DyditError, match="no execution 'fast'; choose one of sparse, masked, complete"):
        executor(tiny_dynamic, "fast")  # type: ignore[arg-type]
