"""The parts of a DiT block. Names follow the public checkpoints, so that formats are a rename at most.

Legend: B batch, N tokens, C width, H heads, D head width, A = H * D attention width (C, unless pruned),
G channel groups, W channels in a group, F = G * W MLP width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dydit_cli.model.config import TimestepVariant

FREQUENCIES = 256

MAX_PERIOD = 10_000.0


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x: B N C; shift, scale: B C (adaLN, DiT section 3.2)."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def sincos_positions(width: int, side: int) -> Tensor:
    """Fixed 2-D sine-cosine positions, 1 x side^2 x width, float32.

    The first half of the width encodes the column, the second the row; each half is sines, then cosines, of
    1 / 10000^(i / (width / 4)).
    """
    omega = MAX_PERIOD ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))  # C/4
    angles = torch.arange(side, dtype=torch.float64)[:, None] * omega  # side C/4
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # side C/2
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
        e: Tensor = self.mlp(self.sinusoid(t).to(next(self.mlp.parameters()).dtype))
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
    """Multi-head self-attention over all tokens. A masked head is zeroed before the output projection."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor, head_mask: Tensor | None = None) -> Tensor:
        """x: B N C; head_mask: B H, zeros and ones."""
        B, N, _ = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)  # each B H N D
        out = F.scaled_dot_product_attention(q, k, v)  # B H N D
        if head_mask is not None:
            out = out * head_mask[:, :, None, None].to(out.dtype)
        y: Tensor = self.proj(out.transpose(1, 2).reshape(B, N, self.heads * self.head_dim))
        return y  # B N C


class Mlp(nn.Module):
    """fc1, tanh-GELU, fc2. A masked channel group is zeroed before the GELU, and GELU(0) = 0."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, group_mask: Tensor | None = None) -> Tensor:
        """x: B N C; group_mask: B G, zeros and ones."""
        h = self.fc1(x)  # B N F
        if group_mask is not None:
            B, N, _ = h.shape
            h = (h.view(B, N, group_mask.shape[1], -1) * group_mask[:, None, :, None].to(h.dtype)).view(B, N, -1)
        y: Tensor = self.fc2(F.gelu(h, approximate="tanh"))
        return y  # B N C


class FinalLayer(nn.Module):
    """Modulated norm and the projection back to patches: B N C -> B N patch^2 * Cout."""

    def __init__(self, width: int, patch: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, patch * patch * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)  # each B C
        y: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return y  # B N P*P*Cout
