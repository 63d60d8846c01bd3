"""REPA (arXiv 2410.06940): a SiT whose t runs the other way, trained beside a vision model's features."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from dydit_cli.model.backbone import DynamicBackbone
from dydit_cli.model.config import ModelConfig, check_flag, check_whole
from dydit_cli.model.families import Family, Hints, Inferred, dit, sit
from dydit_cli.model.families.dit import DyDiT
from dydit_cli.model.families.sit import DySiTConfig, SiT, SiTConfig
from dydit_cli.model.options import FlowEnd, GuidanceChannels
from dydit_cli.model.sites import Weights

PROJECTOR = re.compile(r"projectors\.(\d+)\.4\.weight")
SPLIT = re.compile(r"decoder_blocks\.(\d+)\.")  # older files: what comes after the blocks that the projectors see


@dataclass(frozen=True, kw_only=True)
class REPAConfig(SiTConfig):
    """A static REPA model: data at t = 0 and noise at 1.

    `projector_dims` are the output widths of the projectors, which only its own training runs, and `projector_width` that of
    their hidden layers; they are carried along so that a file goes back as it came.
    """

    learn_sigma: bool = False
    noise_at: FlowEnd = 1
    qk_norm: bool = False
    projector_dims: tuple[int, ...] = ()
    projector_width: int = 2048

    kind: ClassVar[str] = "repa"
    family: ClassVar[str] = "repa"
    title: ClassVar[str] = "REPA"
    guided_channels: ClassVar[GuidanceChannels] = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "projector_dims", tuple(self.projector_dims))  # a list, where it comes from JSON
        super().__post_init__()
        check_flag(self, "qk_norm")
        check_whole(self, "projector_width")

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "projector_dims": list(self.projector_dims)}


@dataclass(frozen=True, kw_only=True)
class DyREPAConfig(DySiTConfig, REPAConfig):
    """A REPA model with routers."""

    kind: ClassVar[str] = "dyrepa"


class REPA(SiT):
    """A SiT with its training's projectors, which are kept and not run."""

    config: REPAConfig

    def __init__(self, config: REPAConfig) -> None:
        super().__init__(config)
        C, P = config.hidden_size, config.projector_width
        if config.projector_dims:
            self.projectors = nn.ModuleList(
                nn.Sequential(nn.Linear(C, P), nn.SiLU(), nn.Linear(P, P), nn.SiLU(), nn.Linear(P, out))
                for out in config.projector_dims
            ).requires_grad_(False)


class DyREPA(DynamicBackbone, REPA):
    """A Dynamic REPA model."""

    config: DyREPAConfig
    make_block = DyDiT.make_block


def matches(names: Collection[str]) -> bool:
    """By the projectors, an older file's second stack, or queries' norms in a block that is otherwise DiT's."""
    mine = [name for name in names if not name.startswith(("projectors.", "decoder_blocks.")) and "_norm." not in name]
    return len(mine) < len(names) and dit.matches(mine)


def one_stack(weights: Weights) -> Weights:
    """An older file's two stacks of blocks under the names of one."""
    first = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})

    def renamed(found: re.Match[str]) -> str:
        return f"blocks.{first + int(found.group(1))}."

    return {SPLIT.sub(renamed, name): w for name, w in weights.items()}


def infer(weights: Weights, hints: Hints) -> Inferred:
    """As a SiT's, and the projectors."""
    weights = one_stack(weights)
    outs = sorted((int(m.group(1)), len(w)) for name, w in weights.items() if (m := PROJECTOR.fullmatch(name)))
    own: dict[str, Any] = {"qk_norm": "blocks.0.attn.q_norm.weight" in weights, **sit.flow_fields(hints)}
    if outs:
        own |= {"projector_dims": tuple(out for _, out in outs), "projector_width": len(weights["projectors.0.0.weight"])}
    return dit.infer(weights, hints, REPAConfig, DyREPAConfig, **own)


def fill(weights: Weights, config: ModelConfig) -> Weights:
    """As a DiT's, under the names of one stack."""
    return dit.fill(one_stack(weights), config)


FAMILY = Family(
    name="repa",
    static_config=REPAConfig,
    dynamic_config=DyREPAConfig,
    static_model=REPA,
    dynamic_model=DyREPA,
    sizes={name.replace("DiT", "REPA"): {**size, "learn_sigma": False} for name, size in dit.FAMILY.sizes.items()},
    published_giga={},
    process="flow",
    matches=matches,
    infer=infer,
    fill=fill,
)
