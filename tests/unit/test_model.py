"""Properties of the static model, the routers and the masked DyDiT."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import Backbone, DynamicBackbone
from dydit_cli.model.families import build_model, config_from_dict, named_config, named_sizes, with_routers
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT
from dydit_cli.model.routers import gate
from tests.conftest import TINY, inputs, randomize


def test_all_routers_on_equals_the_static_model(any_static: Backbone) -> None:
    dynamic = build_model(with_routers(any_static.config))
    assert isinstance(dynamic, DynamicBackbone)
    dynamic.load_state_dict(any_static.state_dict(), strict=False)
    dynamic.reset_routers(bias=1e3, token_bias=1e3)  # high enough for random embeddings, whatever Xavier draws
    x, t, y = inputs(any_static.config)
    with torch.no_grad():
        out, routing = dynamic.eval()(x, t, y, return_routing=True)
        assert torch.equal(out, any_static(x, t, y))
        assert torch.equal(dynamic(x, t, y, complete=True), out)
    assert all(bool((mask == 1).all()) for mask in (routing.heads, routing.groups, routing.tokens))


def test_routing_has_the_documented_shapes(tiny_static: DiT, tiny_dynamic: DyDiT) -> None:
    x, t, y = inputs(TINY, batch=5)
    for model in (tiny_static, tiny_dynamic):
        out, routing = model(x, t, y, return_routing=True)
        assert out.shape == (5, 2, 4, 4)
        assert routing.heads.shape == routing.groups.shape == (3, 5, 3)
        assert routing.tokens.shape == (3, 5, 16)
        assert torch.equal(model(x, t, y), out)


def test_masks_are_exactly_zero_and_one(tiny_dynamic: DyDiT) -> None:
    x, t, y = inputs(TINY, batch=8)
    for training in (False, True):
        _, routing = tiny_dynamic.train(training)(x, t, y, return_routing=True)
        for mask in (routing.heads, routing.groups, routing.tokens):
            assert set(mask.unique().tolist()) == {0.0, 1.0}


def test_evaluation_is_deterministic_and_training_is_not(tiny_dynamic: DyDiT) -> None:
    x, t, y = inputs(TINY)
    assert torch.equal(tiny_dynamic(x, t, y), tiny_dynamic(x, t, y))
    tiny_dynamic.train()
    assert not torch.equal(tiny_dynamic(x, t, y), tiny_dynamic(x, t, y))


def test_first_head_and_group_are_always_on(tiny_dynamic: DyDiT) -> None:
    _, routing = tiny_dynamic.train()(*inputs(TINY, batch=64), return_routing=True)
    assert bool((routing.heads[..., 0] == 1).all())
    assert bool((routing.groups[..., 0] == 1).all())


def test_width_depends_on_the_timestep_alone_and_tokens_do_not(tiny_dynamic: DyDiT) -> None:
    x, _, _ = inputs(TINY, batch=6)
    t = torch.tensor([3, 900, 3, 900, 3, 900])
    y = torch.tensor([0, 1, 2, 3, 4, 10])
    _, routing = tiny_dynamic(x, t, y, return_routing=True)
    for mask in (routing.heads, routing.groups):
        assert torch.equal(mask[:, 0], mask[:, 2])
        assert torch.equal(mask[:, 1], mask[:, 5])
    assert not torch.equal(routing.tokens[:, 0], routing.tokens[:, 2])


@pytest.mark.parametrize("objective", ["output", "ratio"])
def test_gradients_reach_every_router(any_dynamic: DynamicBackbone, objective: str) -> None:
    any_dynamic.train()
    torch.manual_seed(0)
    out, routing = any_dynamic(*inputs(any_dynamic.config, batch=16), return_routing=True)
    masks = (routing.heads, routing.groups, routing.tokens)
    loss = out.square().mean() if objective == "output" else torch.stack([mask.mean() for mask in masks]).sum()
    loss.backward()
    routers = [(name, p) for name, p in any_dynamic.named_parameters() if any_dynamic.config.is_router(name)]
    assert len(routers) == 8 * any_dynamic.config.depth
    for name, p in routers:
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_gate_follows_the_gumbel_sigmoid() -> None:
    """The share of ones is sigmoid(logit) whatever the temperature, and the gradient is sigmoid(./temperature)'s."""
    torch.manual_seed(0)
    logits = torch.full((200_000,), 0.7)
    for temperature in (1.0, 5.0):
        assert gate(logits, temperature, 1.0).mean().item() == pytest.approx(torch.sigmoid(torch.tensor(0.7)).item(), abs=5e-3)
    logit = torch.tensor([0.7], requires_grad=True)
    gate(logit, 5.0, 0.0).sum().backward()
    s = torch.sigmoid(torch.tensor(0.7 / 5))
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx((s * (1 - s) / 5).item())


def test_gate_threshold_is_strict() -> None:
    assert gate(torch.tensor([-1e-6, 0.0, 1e-6]), 5.0, 0.0).tolist() == [0.0, 0.0, 1.0]


def test_masked_head_and_group_are_left_out(tiny_dynamic: DyDiT) -> None:
    """Zeroing a head's proj columns, or a group's fc2 columns, is the same as masking it."""
    block, width = tiny_dynamic.blocks[0], TINY.hidden_size
    x = torch.randn(2, 16, width, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1.0, 0.0, 1.0]]).expand(2, 3)
    attn, mlp = block.get_submodule("attn"), block.get_submodule("mlp")
    with torch.no_grad():
        masked_attn, masked_mlp = attn(x, mask), mlp(x, mask)
        proj, fc2 = attn.get_parameter("proj.weight"), mlp.get_parameter("fc2.weight")
        proj[:, TINY.head_dim : 2 * TINY.head_dim] = 0
        fc2[:, 32:64] = 0
        assert (attn(x) - masked_attn).abs().max() < 1e-6
        assert (mlp(x) - masked_mlp).abs().max() < 1e-6


def test_a_skipped_token_gets_nothing_from_the_mlp(tiny_dynamic: DyDiT) -> None:
    with torch.no_grad():
        for name, p in tiny_dynamic.named_parameters():
            if "token_selection" in name:
                p.fill_(-1.0 if name.endswith("2.bias") else 0.0)
        before = tiny_dynamic(*inputs(TINY))
        for name, p in tiny_dynamic.named_parameters():
            if name.startswith("blocks.") and ".mlp." in name:
                p.fill_(9.0)
        assert torch.equal(tiny_dynamic(*inputs(TINY)), before)


def test_fresh_models_output_zero() -> None:
    """adaLN-Zero: the final layer starts at zero."""
    assert DiT(TINY)(*inputs(TINY)).abs().max() == 0


@pytest.mark.parametrize("name", named_sizes())
def test_named_sizes(name: str) -> None:
    config = named_config(name)
    assert config.size_name == name.removesuffix("-512")  # which says the size of the pictures
    assert config_from_dict(config.to_dict()) == config
    dynamic = with_routers(config)
    assert config_from_dict(dynamic.to_dict()) == dynamic
    assert dynamic.static() == config


def test_shape_of_learned_variance_and_patches() -> None:
    config = DiTConfig(
        input_size=8, patch_size=4, in_channels=2, hidden_size=16, depth=1, num_heads=2, num_classes=3, learn_sigma=False
    )
    assert randomize(DiT(config))(*inputs(config)).shape == (4, 2, 8, 8)


def bad(**values: object) -> Callable[[], object]:
    return lambda: config_from_dict({**TINY.to_dict(), **values})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: named_config("DiT-M/2"), "no model size 'DiT-M/2'; choose one of DiT-S/2"),
        (bad(kind="unet"), "kind is 'unet'; it must be 'dit', 'dydit', "),
        (bad(width=3), "unknown field 'width'; known are class"),
        (bad(depth=0), "depth is 0; it must be a whole number of 1 or more"),
        (bad(depth="3"), "depth is '3'"),
        (bad(input_size=5, patch_size=2), "input_size 5 is no multiple of patch_size 2"),
        (bad(num_heads=5), "hidden_size 24 must be a multiple of num_heads 5"),
        (bad(kind="dydit", num_heads=1), "num_heads is 1; a DyDiT needs at least 2"),
        (bad(kind="dydit", temperature=0), "temperature is 0"),
        (bad(timestep_variant="127"), "timestep_variant is '127'; use 'original' or 'diffusers'"),
        (bad(learn_sigma="yes"), "learn_sigma is 'yes'"),
        (bad(norm2_eps=0), "norm2_eps is 0"),
        (bad(mlp_ratio=-1), "mlp_ratio is -1"),
    ],
)
def test_a_bad_configuration_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DyditError) as error:
        make()
    assert message.split("class")[0] in str(error.value)
