"""The closed form against fvcore, torch's counter and the published figures."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dydit_cli.flops import analytic
from dydit_cli.flops.fvcore import count
from dydit_cli.model.config import DiTConfig, DyDiTConfig, named_config
from dydit_cli.model.dit import DiT
from dydit_cli.model.dydit import DyDiT
from dydit_cli.model.routing import Routing
from dydit_cli.model.sparse import SparseDyDiT
from tests.conftest import TINY, inputs, randomize

# Table 1 of the DiT paper's appendix, GFLOPs (= GMACs) at 32x32 latents
PUBLISHED = {
    "DiT-S/2": 6.06, "DiT-S/4": 1.41, "DiT-S/8": 0.36,
    "DiT-B/2": 23.01, "DiT-B/4": 5.56, "DiT-B/8": 1.42,
    "DiT-L/2": 80.71, "DiT-L/4": 19.70, "DiT-L/8": 5.01,
    "DiT-XL/2": 118.64, "DiT-XL/4": 29.05, "DiT-XL/8": 7.39,
}  # fmt: skip

# What counts as zero: elementwise work, look-ups, and moving numbers about
FREE = {
    "_unique2", "add", "addcmul", "addcmul_", "clone", "cos", "div", "embedding", "exp", "expand_as", "floor_divide",
    "gelu", "gelu_", "gt", "index", "index_add", "index_add_", "index_select", "mul", "mul_", "nonzero", "ones_like", "relu",
    "rsub", "silu", "sin", "stack", "unique_dim",
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_static_sizes_match_the_published_table(name: str) -> None:
    """Within 0.2 % or a unit of the last digit: the papers differ by whether LayerNorms are counted; here they are."""
    assert analytic.static_macs(named_config(name)) / 1e9 == pytest.approx(PUBLISHED[name], rel=2e-3, abs=0.01)


def test_both_published_figures_of_xl() -> None:
    """118.69 G (DyDiT paper) counts LayerNorms; without them it is 118.62 G, what torch counts."""
    config = named_config("DiT-XL/2")
    norms = 4 * config.num_tokens * config.hidden_size * (2 * config.depth + 1)
    assert round(analytic.static_macs(config) / 1e9, 2) == 118.69
    assert round((analytic.static_macs(config) - norms) / 1e9, 2) == 118.62


@pytest.mark.parametrize("batch", [1, 3])
def test_static_model_equals_fvcore(tiny_static: DiT, batch: int) -> None:
    total, unsupported = count(tiny_static, inputs(TINY, batch))
    assert total == batch * analytic.static_macs(TINY)
    assert {name.removeprefix("aten::") for name in unsupported} <= FREE


@settings(max_examples=12, deadline=None)
@given(
    heads=st.sampled_from([2, 3, 4]),
    head_width=st.sampled_from([4, 8]),
    depth=st.integers(1, 3),
    side=st.sampled_from([2, 4]),
    patch=st.sampled_from([1, 2]),
    batch=st.integers(1, 3),
    timestep=st.integers(0, 999),
    seed=st.integers(0, 99),
)
def test_sparse_model_equals_fvcore_and_torch(
    heads: int, head_width: int, depth: int, side: int, patch: int, batch: int, timestep: int, seed: int
) -> None:
    """Whatever the routers choose, the closed form over Routing is the integer that fvcore counts of the sparse run."""
    config = DyDiTConfig(
        input_size=side * patch,
        patch_size=patch,
        in_channels=2,
        hidden_size=heads * head_width,
        depth=depth,
        num_heads=heads,
        num_classes=4,
        token_router_reduction=4,
    )
    model = randomize(DyDiT(config), seed)
    assert isinstance(model, DyDiT)
    sparse = SparseDyDiT(model)
    x, _, y = inputs(config, batch, seed)
    t = torch.full((batch,), timestep)
    _, routing = sparse(x, t, y, return_routing=True)
    by_formula = analytic.total_macs(routing, config)
    # the timestep embedding and the width routers are the same for the whole batch: run once, counted once a sample
    shared = 256 * config.hidden_size + config.hidden_size**2
    routers = 2 * config.hidden_size * config.router_rows * depth
    sparse.forget()  # adaLN's rows of this timestep: to be computed again where they are counted
    total, unsupported = count(sparse, (x, t, y))
    assert total + (batch - 1) * shared + batch * routers == by_formula.sum().item()
    assert {name.removeprefix("aten::") for name in unsupported} <= FREE

    sparse.forget()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sparse(x, t, y)
    norms = analytic.block_macs(routing, config).norms.sum().item()
    final_norm = batch * 4 * config.num_tokens * config.hidden_size
    assert counter.get_total_flops() == 2 * (total - norms - final_norm)


def test_masked_model_with_all_on_equals_fvcore() -> None:
    config = DyDiTConfig.from_static(TINY)
    total, _ = count(DyDiT(config).eval(), inputs(config, 2))
    assert total == analytic.total_macs(Routing.all_on(config, 2), config).sum().item()


def test_ratio_of_the_loss_is_that_of_attention_and_mlp(tiny_dynamic: DyDiT) -> None:
    _, routing = tiny_dynamic(*inputs(TINY, 5), return_routing=True)
    blocks = analytic.block_macs(routing, tiny_dynamic.config)
    everything = TINY.depth * (analytic.attention_macs(TINY) + analytic.mlp_macs(TINY))
    counted = (blocks.attention + blocks.mlp).sum(dim=0) / everything
    assert torch.allclose(counted, analytic.flops_ratio(routing, TINY))


def test_everything_on_has_ratio_one() -> None:
    config = DiTConfig(**{k: v for k, v in TINY.to_dict().items() if k != "kind"})
    assert analytic.flops_ratio(Routing.all_on(config, 3), config).tolist() == [1.0, 1.0, 1.0]
