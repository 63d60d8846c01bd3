"""Triton's kernels compute what the plain path does; without a GPU by Triton's interpreter."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import DynamicBackbone
from dydit_cli.model.execution import executor
from dydit_cli.model.families.dit import DyDiT
from dydit_cli.model.options import PaddedOptions
from dydit_cli.model.padded import PaddedModel, triton_kernels
from dydit_cli.model.sparse import EAGER, Pointwise, add_to_active, first_tokens
from tests.unit.test_padded import level, one_timestep

CPU = torch.device("cpu")
INSTALLED = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not INSTALLED, reason="needs Triton: pip install 'dydit[triton]'")
B, N, C = 3, 5, 24


@pytest.fixture
def kernels() -> Pointwise:
    return triton_kernels(CPU)


def tensors(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x and a mask, and shift, gain and gate side by side, as adaLN gives them."""
    generator = torch.Generator().manual_seed(0)
    x, rows = torch.randn(B, N, C, generator=generator), torch.randn(B, 3 * C, generator=generator)
    mask = (torch.rand(B, N, generator=generator) > 0.5).to(dtype)
    shift, gain, gate = rows.to(dtype).chunk(3, dim=1)
    return x.to(dtype), mask, shift, gain, gate


# of the largest number; in bf16 a last place, which the interpreter cuts off where a GPU rounds
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)], ids=["fp32", "bf16"]
)


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert (found.float() - expected.float()).abs().max() <= tolerance * expected.abs().max()


@needs_triton
@PRECISIONS
@pytest.mark.parametrize("rms", [False, True], ids=["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("shifted", [True, False])
def test_gather_norm_and_modulate(kernels: Pointwise, dtype: torch.dtype, tolerance: float, rms: bool, shifted: bool) -> None:
    """As in float32, rounded once."""
    x, mask, shift, gain, _ = tensors(dtype)
    own = shift if shifted else None
    active = first_tokens(mask, 11)
    wide = None if own is None else own.float().unsqueeze(1)
    expected = EAGER.modulated(x.float(), wide, gain.float().unsqueeze(1), 1e-6, rms)  # B N C
    assert kernels.gathered is not None
    found = kernels.gathered(x, active, own, gain, 1e-6, rms)
    assert found.dtype == dtype
    assert_near(found, expected.view(-1, C)[active], tolerance)
    everything = kernels.modulated(x, None if own is None else own.unsqueeze(1), gain.unsqueeze(1), 1e-6, rms)
    assert_near(everything, expected, tolerance)
    assert kernels.gathered(x, active[:0], own, gain, 1e-6, rms).shape == (0, C)


@needs_triton
@PRECISIONS
@pytest.mark.parametrize("masked", [True, False])
def test_add_back_by_the_gate(kernels: Pointwise, dtype: torch.dtype, tolerance: float, masked: bool) -> None:
    """Places that are off stay as they are, whatever the MLP made of them."""
    x, mask, _, _, gate = tensors(dtype)
    active = first_tokens(mask, 11) if masked else mask.flatten().nonzero().squeeze(1)
    h = torch.randn(len(active), C, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = x.float().view(-1, C).clone()
    for row, place in zip(h.float(), active.tolist(), strict=True):
        expected[place] += gate[place // N].float() * row * mask.flatten()[place]
    if masked:
        h[mask.flatten()[active] == 0] = float("nan")
    assert kernels.added is not None
    found = x.clone()
    kernels.added(found, active, gate, h, mask if masked else None)
    assert_near(found, expected.view(B, N, C), tolerance)
    assert torch.equal(found[mask == 0], x[mask == 0])


@needs_triton
@PRECISIONS
@pytest.mark.parametrize("room", [None, 0, 4, 11, B * N])
def test_around_an_mlp_as_the_plain_path(kernels: Pointwise, dtype: torch.dtype, tolerance: float, room: int | None) -> None:
    """The plain path rounds more often."""
    x, mask, shift, gain, gate = tensors(dtype)
    active = mask.flatten().nonzero().squeeze(1) if room is None else first_tokens(mask, room)
    results = []
    for pointwise in (EAGER, kernels):
        h, kept = x.clone(), list[Tensor]()
        on = None if room is None else mask
        add_to_active(h, active, (shift, gain, gate), (1e-6, False), lambda h: h.sin(), pointwise, kept, on)
        results.append((h, kept[0]))
    assert room == 0 or not torch.equal(results[0][0], x)
    for plain, found in zip(*results, strict=True):
        assert found.dtype == dtype
        assert_near(found, plain, 2 * tolerance)


@needs_triton
def test_whole_models(kernels: Pointwise, any_dynamic: DynamicBackbone) -> None:
    x, t, y = one_timestep(any_dynamic, 2)
    level(any_dynamic, x, t, y)
    with torch.no_grad():
        expected, masks = any_dynamic(x, t, y, return_routing=True)
    padded = PaddedModel(any_dynamic, options=PaddedOptions(triton=True))
    for _ in range(2):
        out, routing = padded(x, t, y, return_routing=True)
        assert torch.equal(routing.tokens, masks.tokens)
        assert (out - expected).abs().max() < 1e-5


def test_mistakes(tiny_dynamic: DyDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DyditError, match=r"triton: is not installed; pip install 'dydit\[triton\]', or leave it out"):
        executor(tiny_dynamic, "padded", padded=PaddedOptions(triton=True))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(DyditError, match="triton: the model is on cpu; use --device cuda or leave it out"):
        executor(tiny_dynamic, "padded", padded=PaddedOptions(triton=True))
    with pytest.raises(DyditError, match="triton: a compiled block is fused already; leave --triton or --compile out"):
        executor(tiny_dynamic, "padded", compile=True, padded=PaddedOptions(triton=True))
    with pytest.raises(DyditError, match="--triton is for a DyDiT in padded execution"):
        executor(tiny_dynamic, "sparse", padded=PaddedOptions(triton=True))
