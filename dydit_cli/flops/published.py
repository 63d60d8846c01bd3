"""The twelve DiT sizes counted, beside the figures of the DiT paper.

The papers differ by what a LayerNorm counts: DyDiT's 118.69 G for DiT-XL/2 is fvcore's, 4 per element; with 1 per element
the figures of the DiT paper come out, 118.64 G for DiT-XL/2; without LayerNorms the products alone are torch's 118.62 G.
"""

from __future__ import annotations

from dataclasses import dataclass

from dydit_cli.model.config import named_config

FREQUENCIES, NORM_MACS_PER_ELEMENT = 256, 4  # as in `model.layers` and `flops.analytic`, which load torch

# GFLOPs at 32x32 latents (Peebles and Xie 2023, appendix A, table 4)
PUBLISHED = {
    "DiT-S/2": 6.06, "DiT-S/4": 1.41, "DiT-S/8": 0.36,
    "DiT-B/2": 23.01, "DiT-B/4": 5.56, "DiT-B/8": 1.42,
    "DiT-L/2": 80.71, "DiT-L/4": 19.70, "DiT-L/8": 5.01,
    "DiT-XL/2": 118.64, "DiT-XL/4": 29.05, "DiT-XL/8": 7.39,
}  # fmt: skip


@dataclass(frozen=True)
class StaticCount:
    """One size, MACs per forward and image: `macs` with LayerNorms at 4 per element (fvcore, the DyDiT paper),
    `macs_norms_once` at 1 (the DiT paper), `macs_products` without (torch's counter halved); parts sum to `macs`."""

    model: str
    parameters: int
    macs: int
    macs_norms_once: int
    macs_products: int
    published_giga: float
    parts: dict[str, int]


def static_table() -> list[StaticCount]:
    """All twelve published sizes."""
    return [count_size(name) for name in PUBLISHED]


def count_size(name: str) -> StaticCount:
    """One published size, such as DiT-XL/2, in closed form and without torch: what `flops.analytic` gives for everything
    on, and the parameters of the model that would be built."""
    config = named_config(name)
    L, C, N, F = config.depth, config.hidden_size, config.num_tokens, config.mlp_hidden
    patch, output = config.patch_size**2 * config.in_channels, config.patch_size**2 * config.out_channels
    embedder = FREQUENCIES * C + C * C
    final_norm = NORM_MACS_PER_ELEMENT * N * C
    parts = {
        "attention": L * (4 * N * C * C + 2 * N * N * C),
        "mlp": L * 2 * N * C * F,
        "modulation": L * 6 * C * C,
        "norms": L * 2 * final_norm,  # two in a block, each as large as the final one
        "frame": N * C * patch + embedder + 2 * C * C + final_norm + N * C * output,
    }
    weights = L * (4 * C * C + 2 * C * F + 6 * C * C) + C * patch + embedder + 2 * C * C + C * output
    biases = L * (4 * C + F + C + 6 * C) + C + 2 * C + 2 * C + output
    positions, labels = N * C, (config.num_classes + 1) * C
    total, norms = sum(parts.values()), parts["norms"] + final_norm
    return StaticCount(
        model=name,
        parameters=weights + biases + positions + labels,
        macs=total,
        macs_norms_once=total - norms + norms // NORM_MACS_PER_ELEMENT,
        macs_products=total - norms,
        published_giga=PUBLISHED[name],
        parts=parts,
    )
