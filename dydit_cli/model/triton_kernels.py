"""What surrounds the MLP of the active tokens, in two kernels of Triton's: gather, norm and modulate; add back by the gate.

Eager operations read and write the tokens five times there. Sums are float32 whatever the tokens are, and each number is
rounded once. Needs `pip install 'dydit[triton]'`. With TRITON_INTERPRET=1 in the environment they run on a cpu, slowly.

Legend: B batch, N tokens, C width, A places.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dydit_cli.model.sparse import EAGER, Pointwise


@triton.jit
def _modulated(x, places, shift, gain, out, N, C, shift_row, gain_row, eps, rms: tl.constexpr, width: tl.constexpr):
    """One row: out[i] = norm(x[places[i]]) * gain[sample] + shift[sample], of the sample that the place is in."""
    i = tl.program_id(0).to(tl.int64)
    place = i if places is None else tl.load(places + i)
    sample, column = place // N, tl.arange(0, width)
    inside = column < C
    h = tl.load(x + place * C + column, mask=inside, other=0.0).to(tl.float32)
    if not rms:
        h = tl.where(inside, h - tl.sum(h, axis=0) / C, 0.0)
    h = h * tl.rsqrt(tl.sum(h * h, axis=0) / C + eps)
    h = h * tl.load(gain + sample * gain_row + column, mask=inside, other=0.0).to(tl.float32)
    if shift is not None:
        h = h + tl.load(shift + sample * shift_row + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + i * C + column, h, mask=inside)


@triton.jit
def _add(x, places, gate, h, on, N, C, gate_row, width: tl.constexpr):
    """One row: x[places[i]] += gate[sample] * h[i], where the place is on. No place comes twice."""
    i = tl.program_id(0).to(tl.int64)
    place = tl.load(places + i)
    end = C if on is None else tl.where(tl.load(on + place) > 0, C, 0)
    column = tl.arange(0, width)
    inside = column < end
    value = tl.load(h + i * C + column, mask=inside, other=0.0).to(tl.float32)
    value = value * tl.load(gate + place // N * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    value = value + tl.load(x + place * C + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + place * C + column, value, mask=inside)


def _launch(kernel: Any, rows: int, C: int, *arguments: Any, **constants: Any) -> None:
    if rows:
        width = triton.next_power_of_2(C)
        kernel[(rows,)](*arguments, width=width, num_warps=4 if width <= 1024 else 8, **constants)


def gathered(x: Tensor, active: Tensor, shift: Tensor | None, gain: Tensor, eps: float, rms: bool) -> Tensor:
    """x: B N C; active: (A,) rows of its flattened batch; shift, gain: B C -> A C."""
    _, N, C = x.shape
    out = x.new_empty(len(active), C)
    rows = (0 if shift is None else shift.stride(0), gain.stride(0))
    _launch(_modulated, len(active), C, x, active, shift, gain, out, N, C, *rows, eps, rms=rms)
    return out


def modulated(x: Tensor, shift: Tensor | None, gain: Tensor, eps: float, rms: bool) -> Tensor:
    """x: B N C; shift, gain: B 1 C -> B N C. Where each row has its own, as `EAGER` does."""
    if x.dim() != 3:
        return EAGER.modulated(x, shift, gain, eps, rms)
    B, N, C = x.shape
    out = torch.empty_like(x)
    rows = (0 if shift is None else shift.stride(0), gain.stride(0))
    _launch(_modulated, B * N, C, x, None, shift, gain, out, N, C, *rows, eps, rms=rms)
    return out


def added(x: Tensor, active: Tensor, gate: Tensor, h: Tensor, mask: Tensor | None) -> None:
    """x (B N C) += gate (B C) times h (A C) in the rows `active`, of which with a `mask` (B N) those that are on; in place."""
    _, N, C = x.shape
    _launch(_add, len(active), C, x, active, gate, h, mask, N, C, gate.stride(0))


KERNELS = Pointwise(modulated, EAGER.gelu, EAGER.swiglu, gathered, added)
