"""The published sizes of all families counted, beside the figures of their papers.

The papers differ by what a LayerNorm counts: DyDiT's 118.69 G for DiT-XL/2 is fvcore's, 4 per element; with 1 per element
the figures of the DiT paper come out, 118.64 G for DiT-XL/2; without LayerNorms the products alone are torch's 118.62 G.
Latte's 1893 G for Latte-XL/2 has 30 G of adaLN in it that we compute once a video (`model.families.latte`).
"""

from __future__ import annotations

from dataclasses import dataclass

from dydit_cli.model.config import NORM_MACS_PER_ELEMENT
from dydit_cli.model.families import family_of, named_config, named_sizes
from dydit_cli.model.macs import block_macs, static_macs
from dydit_cli.model.routing import Routing


@dataclass(frozen=True)
class StaticCount:
    """One size, MACs per forward and image: `macs` with LayerNorms at 4 per element (fvcore, the DyDiT paper),
    `macs_norms_once` at 1 (the DiT paper), `macs_products` without (torch's counter halved); parts sum to `macs`.
    `published_giga` is None where no figure is published."""

    model: str
    parameters: int
    macs: int
    macs_norms_once: int
    macs_products: int
    published_giga: float | None
    parts: dict[str, int]


def static_table() -> list[StaticCount]:
    """The sizes, of every family, whose GFLOPs are published."""
    return [count for count in map(count_size, named_sizes()) if count.published_giga is not None]


def count_size(name: str) -> StaticCount:
    """One published size, such as DiT-XL/2, in closed form and without torch: what `flops.analytic` gives for everything
    on, and the parameters of the model that would be built."""
    config = named_config(name)
    blocks = block_macs(Routing.all_on(config, 1), config)
    total = static_macs(config)
    parts = {part: int(getattr(blocks, part).sum()) for part in ("attention", "mlp", "modulation", "norms")}
    final_norm = config.num_tokens * config.norm_macs()
    norms = parts["norms"] + final_norm
    return StaticCount(
        model=name,
        parameters=config.num_parameters(),
        macs=total,
        macs_norms_once=total - norms + norms // NORM_MACS_PER_ELEMENT,
        macs_products=total - norms,
        published_giga=family_of(config).published_giga.get(name),
        parts={**parts, "frame": total - sum(parts.values())},
    )
