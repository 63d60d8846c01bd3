"""Sparse execution equals masked execution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import Backbone, DynamicBackbone
from dydit_cli.model.execution import SparseModel, executor
from dydit_cli.model.families.dit import DiT, DyDiT, DyDiTConfig
from dydit_cli.model.families.dit_blocks import DynamicBlock
from dydit_cli.model.options import Execution
from dydit_cli.model.planning import plan_width, runs_of
from dydit_cli.model.sparse import EAGER, compiled
from dydit_cli.model.weight_cache import WeightSlices
from tests.conftest import TINY, inputs, randomize


def set_routers(
    model: DynamicBackbone, *, heads: float | None = None, groups: float | None = None, tokens: float | None = None
) -> None:
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
@pytest.mark.parametrize("access", ["views", "copies"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["fp32", "fp64"])
def test_sparse_equals_masked(
    any_dynamic: DynamicBackbone, setting: str, batch: int, mixed: bool, access: Any, dtype: torch.dtype, tolerance: float
) -> None:
    """The whole model, outputs of about 5."""
    set_routers(any_dynamic, **SETTINGS[setting])
    model = any_dynamic.to(dtype)
    x, t, y = inputs(model.config, batch)
    x, t = x.to(dtype), t if mixed else t[:1].expand(batch)
    with torch.no_grad():
        expected, masks = model(x, t, y, return_routing=True)
    out, routing = SparseModel(model, access=access)(x, t, y, return_routing=True)
    for name in ("heads", "groups", "tokens"):
        assert torch.equal(getattr(routing, name), getattr(masks, name))
    assert (out - expected).abs().max() < tolerance


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("access", ["views", "copies"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10), (torch.bfloat16, 1e-2)])
def test_every_block_equals_its_masked_self(
    any_dynamic: DynamicBackbone, setting: str, access: Any, dtype: torch.dtype, tolerance: float
) -> None:
    own = SETTINGS[setting]
    if dtype == torch.bfloat16 and any_dynamic.config.family != "dit":
        own = {"tokens": 1.0, **own}  # a norm's weight is multiplied elsewhere, and a logit near 0 may round to either side
    set_routers(any_dynamic, **own)
    model = any_dynamic.to(dtype)
    slices = WeightSlices(access, capacity=10**9)
    generator = torch.Generator().manual_seed(0)
    h, c = (torch.randn(shape, generator=generator).to(dtype) for shape in ((3, model.config.num_tokens, 24), (3, 24)))
    with torch.no_grad():
        e = model.embed_timestep(torch.tensor([321]))
        for i, (block, width) in enumerate(zip(model.blocks, plan_width(model, [321])[321], strict=True)):
            assert isinstance(block, DynamicBlock)
            expected, routing = block.forward_routed(h, c, e.expand(3, -1), noise=0.0)
            found = h.clone()
            parts = {s.structure: slices.parts(i, block, s, getattr(width, s.structure)) for s in model.config.sites(i)}
            mask = block.forward_sparse(found, block.modulation(c), parts, EAGER)
            assert torch.equal(mask, routing.tokens)
            assert (found - expected).norm() <= tolerance * expected.norm()
            h = expected


def test_one_token_alone(tiny_dynamic: DyDiT) -> None:
    """All but one token of the whole batch skip every MLP."""
    x, t, y = inputs(TINY, 3)
    t = t[:1].expand(3)
    with torch.no_grad():
        for block in tiny_dynamic.blocks:
            assert isinstance(block, DynamicBlock)
            seen: list[torch.Tensor] = []
            head = block.token_selection.mlp_head
            hook = head.register_forward_hook(lambda module, arguments, output, seen=seen: seen.append(output))
            tiny_dynamic(x, t, y)
            hook.remove()
            last = head[2]
            assert isinstance(last, nn.Linear)
            top = seen[0].flatten().sort(descending=True).values
            last.bias.sub_((top[0] + top[1]) / 2)
        expected, masks = tiny_dynamic(x, t, y, return_routing=True)
    assert masks.tokens.sum(dim=(1, 2)).tolist() == [1.0, 1.0, 1.0]
    assert (SparseModel(tiny_dynamic)(x, t, y) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("size", "patch"), [(3, 1), (7, 1), (64, 2)], ids=["9 tokens", "49 tokens", "512 px: 1024 tokens"])
def test_other_sizes(size: int, patch: int) -> None:
    config = DyDiTConfig(
        input_size=size, patch_size=patch, hidden_size=20, depth=2, num_heads=5, num_classes=3, token_router_reduction=4
    )
    model = randomize(DyDiT(config))
    x, t, y = inputs(config, 2)
    with torch.no_grad():
        expected = model(x, t[:1].expand(2), y)
    assert isinstance(model, DyDiT)
    assert (SparseModel(model)(x, t[:1].expand(2), y) - expected).abs().max() < 1e-5


def test_copies_keep_to_their_memory(any_dynamic: DynamicBackbone) -> None:
    """The results are the same at any cap; what does not fit is made again."""
    x, _, y = inputs(any_dynamic.config, 2)
    outputs, stats = [], []
    for memory in (0, 20_000, 10**9):
        model = SparseModel(any_dynamic, access="copies", plan_memory=memory)
        model.plan(range(0, 1000, 50))
        results = [model(x, torch.full((2,), t), y) for _ in range(2) for t in range(0, 1000, 50)]
        assert model.stats.bytes <= memory
        outputs.append(torch.stack(results))
        stats.append(model.stats)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert stats[0].evictions > stats[1].evictions > stats[2].evictions == 0
    assert stats[2].misses == stats[2].distinct
    assert stats[2].hits + stats[2].misses == 2 * 20 * 2 * any_dynamic.config.depth
    model.clear()
    assert model.stats.bytes == 0
    assert torch.equal(torch.stack([model(x, torch.full((2,), t), y) for t in range(0, 1000, 50)]), outputs[0][:20])
    views = SparseModel(any_dynamic, access="views")
    views(x, torch.full((2,), 5), y)
    assert views.stats.bytes == 0


def test_modulation_computed_ahead_is_the_same(tiny_dynamic: DyDiT) -> None:
    """A planned run in order, the same labels, then others: each step as if it were alone."""
    x, _, y = inputs(TINY, 3)
    timesteps = [999, 700, 400, 100]
    planned = SparseModel(tiny_dynamic)
    planned.plan(timesteps)
    calls: list[int] = []
    linear = tiny_dynamic.blocks[0].get_submodule("adaLN_modulation")
    linear.register_forward_hook(lambda module, arguments, output: calls.append(len(output)))
    for labels in (y, (y + 1) % 10):
        for t in timesteps:
            alone = SparseModel(tiny_dynamic)(x, torch.full((3,), t), labels)
            calls.pop()
            assert (planned(x, torch.full((3,), t), labels) - alone).abs().max() < 1e-5
    assert calls == [12, 12]


def test_runs_of_neighbours() -> None:
    assert runs_of([True, True, False, True]) == ((0, 2), (3, 4))
    assert runs_of([False, False]) == ()
    assert runs_of([True]) == ((0, 1),)


def test_routing_of_the_fixture_is_mixed(any_dynamic: DynamicBackbone) -> None:
    """Otherwise the comparison above would say little."""
    x, t, y = inputs(any_dynamic.config, 8)
    _, routing = any_dynamic(x, t, y, return_routing=True)
    for mask in (routing.heads[..., 1:], routing.groups[..., 1:], routing.tokens):
        assert 0.1 < mask.mean() < 0.9


def test_execution_by_name(tiny_dynamic: DyDiT, tiny_static: DiT) -> None:
    x, t, y = inputs(tiny_dynamic.config)
    assert executor(tiny_static, "sparse") is tiny_static
    assert executor(tiny_dynamic, "masked") is tiny_dynamic
    with torch.no_grad():
        assert torch.equal(executor(tiny_dynamic, "complete")(x, t, y), tiny_dynamic(x, t, y, complete=True))
    with pytest.raises(DyditError, match="no execution 'fast'; choose one of sparse, padded, masked, complete"):
        executor(tiny_dynamic, "fast")


# torch's own import of its compiler
TORCH_OWN = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")


@TORCH_OWN
def test_fused_elementwise_work_is_not_compiled_anew_by_routing(any_dynamic: DynamicBackbone) -> None:
    """At most four graphs for the modulation (whole batch or gathered tokens, one token alone) and two for GELU or SwiGLU."""
    torch._dynamo.reset()
    counters.clear()
    sparse = SparseModel(any_dynamic)
    sparse.pointwise = compiled("eager")
    seen = set()
    for seed in range(10):
        x, _, y = inputs(any_dynamic.config, 4, seed)
        t = torch.full((4,), 100 * seed)
        with torch.no_grad():
            expected, routing = any_dynamic(x, t, y, return_routing=True)
        assert torch.allclose(sparse(x, t, y), expected, atol=1e-5)
        seen |= set(routing.tokens.sum(dim=2).flatten().tolist())
    assert len(seen) > 4  # the number of active tokens did change
    assert counters["stats"]["unique_graphs"] <= 6


@TORCH_OWN
def test_compile_reaches_every_execution(tiny_dynamic: DyDiT, tiny_static: DiT) -> None:
    assert SparseModel(tiny_dynamic, compile=True).pointwise is compiled()
    executions: list[tuple[Backbone, Execution]] = [
        (tiny_dynamic, "masked"),
        (tiny_dynamic, "complete"),
        (tiny_static, "sparse"),
    ]
    for model, execution in executions:
        dense = executor(model, execution, compile=True)
        assert isinstance(dense, nn.Module)
        assert dense._compiled_call_impl is not None
