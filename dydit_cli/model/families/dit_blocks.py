"""What the blocks of a DiT are made of, with and without routers; the families of its kind build on them.

Module names follow the public checkpoints, so that formats are a rename at most.

Legend: B batch, N tokens, C width, H heads (and channel groups), D head width, F MLP width, P patch, S input size, A active
tokens, M rows of a condition, K their modulations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dydit_cli.errors import DyditError
from dydit_cli.model.families import of_shapes_alone
from dydit_cli.model.merging import TokenMerging, merge, unmerge
from dydit_cli.model.options import TimestepVariant
from dydit_cli.model.regions import ATTENTION, GATHER, MATCHING, MLP, MODULATION, TOKEN_ROUTERS, region
from dydit_cli.model.routers import TokenRouter, WidthRouter, token_router, width_router
from dydit_cli.model.routing import BlockRouting
from dydit_cli.model.sites import per_unit
from dydit_cli.model.sparse import Pointwise, active_tokens, add_to_active, first_tokens, sparse_attention, sparse_mlp
from dydit_cli.model.weight_cache import Part, Parts

if TYPE_CHECKING:
    from dydit_cli.model.families.dit import DiTConfig, DyDiTConfig

FREQUENCIES = 256
MAX_PERIOD = 10_000.0


def norm(config: DiTConfig, eps: float = 1e-6) -> nn.LayerNorm | nn.RMSNorm:
    """Of C: a LayerNorm without weights, or an RMSNorm with one, which is computed in float32 at least."""
    if config.rms_norm:
        return nn.RMSNorm(config.hidden_size, eps=eps)
    return nn.LayerNorm(config.hidden_size, eps=eps, elementwise_affine=False)


def head_norm(config: DiTConfig) -> nn.Module:
    """Of the queries or keys of a head, D: as in timm a LayerNorm with weights and 1e-5, or an RMSNorm with 1e-6; or none."""
    if not config.qk_norm:
        return nn.Identity()
    return nn.RMSNorm(config.head_dim, eps=1e-6) if config.rms_norm else nn.LayerNorm(config.head_dim, eps=1e-5)


def modulate(x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """x: B N C; shift, scale: B C (adaLN, DiT section 3.2)."""
    h = x * (1 + scale.unsqueeze(1))
    return h if shift is None else h + shift.unsqueeze(1)


def sincos_axis(width: int, count: int) -> Tensor:
    """Fixed positions along one axis, count x width, float64: sines, then cosines, of 1 / 10000^(i / (width / 2))."""
    if of_shapes_alone():
        return torch.empty(count, width, dtype=torch.float64)
    omega = MAX_PERIOD ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))  # C/2
    angles = torch.arange(count, dtype=torch.float64)[:, None] * omega  # count C/2
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_positions(width: int, side: int) -> Tensor:
    """Fixed 2-D sine-cosine positions, 1 x side^2 x width, float32.

    The first half of the width encodes the column, the second the row.
    """
    if of_shapes_alone():
        return torch.empty(1, side * side, width)
    axis = sincos_axis(width // 2, side)  # side C/2
    columns = axis[None, :, :].expand(side, side, -1)
    rows = axis[:, None, :].expand(side, side, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, side * side, width).float()


class PatchEmbed(nn.Module):
    """Image to tokens: B Cin S S -> B N C, row by row."""

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        # in memory as its shape says: a transposed view would slow every layer after it
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()  # B N C


class TimestepEmbedder(nn.Module):
    """Timesteps to B C: 256 frequencies (cosines, then sines), Linear, SiLU, Linear.

    The sinusoid is float32 whatever the weights are, and is cast to their dtype before the first Linear.
    """

    def __init__(self, width: int, variant: TimestepVariant) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        half = FREQUENCIES // 2
        # the authors divide by half; diffusers' downscale_freq_shift of 1 makes it half - 1
        self.divisor = half if variant == "original" else half - 1

    def sinusoid(self, t: Tensor) -> Tensor:
        steps = torch.arange(FREQUENCIES // 2, dtype=torch.float32, device=t.device)
        angles = t[:, None].float() * torch.exp(-math.log(MAX_PERIOD) * steps / self.divisor)  # B 128
        return torch.cat([angles.cos(), angles.sin()], dim=1)  # B 256

    def forward(self, t: Tensor) -> Tensor:
        weight = next(self.mlp.parameters())
        t = t.to(weight.device, non_blocking=weight.is_cuda)  # not to wait for the device; elsewhere it may not be safe
        e: Tensor = self.mlp(self.sinusoid(t).to(weight.dtype))
        return e  # B C


class LabelEmbedder(nn.Module):
    """A table of num_classes + 1 rows; the last row is the null class. Dropping labels is the training loop's work."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        e: Tensor = self.embedding_table(y)
        return e  # B C


class Attention(nn.Module):
    """Multi-head self-attention over all tokens. A masked head is zeroed before the output projection.

    `rotate`, where there is one, gives queries and keys (B h N D) their rotary positions; it is no submodule, since what it
    looks up is the model's.
    """

    rotate: Callable[[Tensor], Tensor] | None = None

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.num_heads, config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * config.attention_hidden)
        self.q_norm, self.k_norm = head_norm(config), head_norm(config)
        self.proj = nn.Linear(config.attention_hidden, config.hidden_size)

    def forward(self, x: Tensor, head_mask: Tensor | None = None) -> Tensor:
        """x: B N C; head_mask: B H, zeros and ones."""
        B, N, _ = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)  # each B H N D
        out = self.attend(q, k, v)  # B H N D
        if head_mask is not None:
            out = out * head_mask[:, :, None, None].to(out.dtype)
        y: Tensor = self.proj(out.transpose(1, 2).reshape(B, N, self.heads * self.head_dim))
        return y  # B N C

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Of any number of heads: each B h N D -> B h N D."""
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotate is not None:
            q, k = self.rotate(q), self.rotate(k)
        return F.scaled_dot_product_attention(q, k, v)

    def mean_key(self) -> tuple[Tensor, Tensor]:
        """Weight (D x C) and bias (D,) of the mean over heads of a token's keys, before their norm.

        Raises `DyditError` for rotary positions, which a merged token has not one of.
        """
        if self.rotate is not None:
            raise DyditError("tome: tokens with rotary positions cannot be merged; leave tome out")
        weight, bias = (p.detach().chunk(3)[1] for p in (self.qkv.weight, self.qkv.bias))
        return weight.view(self.heads, self.head_dim, -1).mean(dim=0), bias.view(self.heads, self.head_dim).mean(dim=0)


def mask_groups(h: Tensor, group_mask: Tensor | None) -> Tensor:
    """h (B N F) with the channels of masked groups at zero; group_mask: B G, zeros and ones, or None for all on."""
    if group_mask is None:
        return h
    B, N, _ = h.shape
    channels, groups = int(h.shape[2]), int(group_mask.shape[1])  # a tracer's shapes are tensors
    group_mask = group_mask.to(h.dtype)
    if channels % groups:
        return h * per_unit(group_mask, channels)[:, None]
    return (h.view(B, N, groups, -1) * group_mask[:, None, :, None]).view(B, N, -1)


class Mlp(nn.Module):
    """fc1, tanh-GELU, fc2. A masked channel group is zeroed before the GELU, and GELU(0) = 0."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, group_mask: Tensor | None = None) -> Tensor:
        """x: B N C; group_mask: B G, zeros and ones."""
        h = self.fc1(x)  # B N F
        y: Tensor = self.fc2(F.gelu(mask_groups(h, group_mask), approximate="tanh"))
        return y  # B N C

    def forward_sparse(self, parts: Sequence[Part], x: Tensor, pointwise: Pointwise) -> Tensor:
        """x: A C -> A C, by the groups of `parts` alone."""
        return sparse_mlp(parts, x, self.fc2.bias, pointwise.gelu)


class SwiGLU(nn.Module):
    """w12 gives gate and value, one after the other: w3(silu(gate) * value)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, group_mask: Tensor | None = None) -> Tensor:
        """x: B N C; group_mask: B G, zeros and ones."""
        gate, value = self.w12(x).chunk(2, dim=2)  # each B N F
        y: Tensor = self.w3(mask_groups(F.silu(gate) * value, group_mask))
        return y  # B N C

    def forward_sparse(self, parts: Sequence[Part], x: Tensor, pointwise: Pointwise) -> Tensor:
        """x: A C -> A C, by the groups of `parts` alone."""
        return sparse_mlp(parts, x, self.w3.bias, pointwise.swiglu)


class FinalLayer(nn.Module):
    """Modulated norm and the projection back to patches: B N C -> B N patch^2 * Cout."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        C = config.hidden_size
        self.norm_final = norm(config)
        self.linear = nn.Linear(C, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(C, 2 * C))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)  # each B C
        y: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return y  # B N P*P*Cout


class Block(nn.Module):
    """One transformer block; c (B C) sets shift, scale and gate of both halves.

    `kept`, while it is a list, is given what the attention and what the MLP returned, B N C each, before the gates: of
    tokens that skip the MLP zeros, or what they keep.
    """

    kept: list[Tensor] | None = None

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        C = config.hidden_size
        self.modulations, self.rms_norm = config.modulations, config.rms_norm
        self.norm1 = norm(config)
        self.attn = Attention(config)
        self.norm2 = norm(config, config.norm2_eps)
        self.mlp: Mlp | SwiGLU = (SwiGLU if config.swiglu else Mlp)(C, config.mlp_hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(C, config.modulations * C))

    def split(self, rows: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """adaLN's rows (M K) as shift, scale and gate of the attention and of the MLP, each M C; None is no shift."""
        parts: Sequence[Tensor | None] = rows.chunk(self.modulations, dim=1)
        if self.modulations == 4:
            parts = (None, *parts[:2], None, *parts[2:])
        return cast(tuple[Tensor | None, Tensor, Tensor, Tensor | None, Tensor, Tensor], parts)

    def forward(self, x: Tensor, c: Tensor, merging: TokenMerging | None = None) -> Tensor:
        """x: B N C. With `merging` the attention sees merged tokens."""
        with region(MODULATION):
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.split(self.adaLN_modulation(c))  # each B C
            h = modulate(self.norm1(x), shift_a, scale_a)
        x = self.add_attention(x, h, gate_a, merging)
        with region(MODULATION):
            h = modulate(self.norm2(x), shift_m, scale_m)
        with region(MLP):
            h = self.keep(self.mlp(h))
        return x + gate_m.unsqueeze(1) * h

    def keep(self, h: Tensor) -> Tensor:
        """h: B N C, as it is."""
        if self.kept is not None:
            self.kept.append(h)
        return h

    def gates(self, c: Tensor) -> list[Tensor]:
        """Of the attention and of the MLP for c (B C), each B C: of adaLN's rows these alone."""
        linear, half = cast(nn.Linear, self.adaLN_modulation[1]), self.modulations // 2
        h = self.adaLN_modulation[0](c)  # B C
        weights, biases = (p.unflatten(0, (self.modulations, -1)) for p in (linear.weight, linear.bias))
        return [F.linear(h, weights[i], biases[i]) for i in (half - 1, 2 * half - 1)]

    def forward_forecast(self, x: Tensor, c: Tensor, attention: Tensor, mlp: Tensor) -> Tensor:
        """x: B N C; c: B C; what attention and MLP would have returned, each B N C, is not computed but given."""
        gate_a, gate_m = self.gates(c)
        return torch.addcmul(torch.addcmul(x, gate_a.unsqueeze(1), attention), gate_m.unsqueeze(1), mlp)

    def add_attention(self, x: Tensor, h: Tensor, gate: Tensor, merging: TokenMerging | None) -> Tensor:
        """x (B N C) + gate (B C) times the attention of h (B N C)."""
        if merging is None:
            with region(ATTENTION):
                h = self.keep(self.attn(h))
            return x + gate.unsqueeze(1) * h
        with region(MATCHING):
            places = merging.places(h)  # B N
        with region(GATHER):
            merged = merge(h, places, merging.kept)  # B M C
        with region(ATTENTION):
            merged = self.attn(merged)
        with region(GATHER):
            if self.kept is not None:
                self.keep(unmerge(merged, places))
            return x + unmerge(gate.unsqueeze(1) * merged, places)


class DynamicBlock(Block):
    """A block whose heads and channel groups follow the timestep and whose MLP skips tokens (figure 2 of the paper).

    `last`, while it is a tensor, has what the MLP last returned of every token, B N C: those that skip it keep that.
    """

    last: Tensor | None = None

    def __init__(self, config: DyDiTConfig) -> None:
        super().__init__(config)
        self.temperature = config.temperature
        self.attn_rate, self.mlp_rate = width_router(config)(config), width_router(config)(config)
        self.token_selection = token_router(config)(config)

    @property
    def head_router(self) -> WidthRouter:
        return self.attn_rate

    @property
    def group_router(self) -> WidthRouter:
        return self.mlp_rate

    @property
    def token_router(self) -> TokenRouter:
        return self.token_selection

    def modulation(self, c: Tensor) -> Tensor:
        """c: M C -> M K, the two scales as 1 + scale times the norm's weight: once a sample here, not once a token later."""
        with region(MODULATION):
            rows: Tensor = self.adaLN_modulation(c)
            _, gain_a, _, _, gain_m, _ = self.split(rows)
            for norm, gain in ((self.norm1, gain_a), (self.norm2, gain_m)):
                gain.add_(1)
                if self.rms_norm:
                    gain.mul_(norm.weight)
        return rows

    def forward_routed(
        self, x: Tensor, c: Tensor, e: Tensor, noise: float | tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, BlockRouting]:
        """x: B N C; c: B C; e: B C, the timestep embedding alone; noise: a scale, or that of heads, groups, tokens."""
        head_noise, group_noise, token_noise = noise if isinstance(noise, tuple) else (noise, noise, noise)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.split(self.adaLN_modulation(c))  # each B C
        heads = self.attn_rate(e, self.temperature, head_noise)  # B H
        groups = self.mlp_rate(e, self.temperature, group_noise)  # B H
        x = x + gate_a.unsqueeze(1) * self.keep(self.attn(modulate(self.norm1(x), shift_a, scale_a), heads))
        tokens = self.token_selection(x, self.temperature, token_noise)  # B N
        mlp = self.mlp(modulate(self.norm2(x), shift_m, scale_m), groups)  # B N C
        if self.last is not None:
            mlp = self.keep(torch.where(tokens.bool().unsqueeze(-1), mlp, self.last))
            self.last.copy_(mlp)
            return x + gate_m.unsqueeze(1) * mlp, BlockRouting(heads, groups, tokens)
        if self.kept is not None:
            self.keep(tokens.unsqueeze(-1) * mlp)
        return x + tokens.unsqueeze(-1) * gate_m.unsqueeze(1) * mlp, BlockRouting(heads, groups, tokens)

    def forward_sparse(
        self, x: Tensor, modulation: Tensor, parts: Parts, pointwise: Pointwise, room: int | None = None
    ) -> Tensor:
        """Adds the block's work to x (B N C) in place; modulation: B K. Returns the token mask, B N. With `room` its shapes are
        known without the mask."""
        shift_a, gain_a, gate_a, shift_m, gain_m, gate_m = self.split(modulation)  # each B C

        first, second = ((cast(float, norm.eps), self.rms_norm) for norm in (self.norm1, self.norm2))
        with region(MODULATION):
            shift = None if shift_a is None else shift_a.unsqueeze(1)  # B 1 C
            h = pointwise.modulated(x, shift, gain_a.unsqueeze(1), *first)  # B N C
        with region(ATTENTION):
            h = self.keep(sparse_attention(parts["heads"], h, self.attn.proj.bias, self.attn.attend))
        x.addcmul_(gate_a.unsqueeze(1), h)
        with region(TOKEN_ROUTERS):
            mask = self.token_selection(x, 1.0, 0.0)  # B N
            active = active_tokens(mask) if room is None else first_tokens(mask, room)  # A; a number, with `room`

        def mlp(h: Tensor) -> Tensor:
            with region(MLP):
                return self.mlp.forward_sparse(parts["groups"], h, pointwise)

        on = None if room is None else mask
        add_to_active(x, active, (shift_m, gain_m, gate_m), second, mlp, pointwise, self.kept, on, self.last)
        return mask
