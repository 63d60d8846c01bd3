"""SiT (arXiv 2401.08740): DiT's weights, trained by flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from dydit_cli.model.backbone import DynamicBackbone
from dydit_cli.model.config import FlowConfig
from dydit_cli.model.families import Family, Hints, Inferred, dit
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT, DyDiTConfig
from dydit_cli.model.sites import Weights


@dataclass(frozen=True, kw_only=True)
class SiTConfig(FlowConfig, DiTConfig):
    """A static SiT. With `learn_sigma` the final layer has rows for a variance that the forward pass leaves out."""

    kind: ClassVar[str] = "sit"
    family: ClassVar[str] = "sit"
    title: ClassVar[str] = "SiT"


@dataclass(frozen=True, kw_only=True)
class DySiTConfig(DyDiTConfig, SiTConfig):
    """A SiT with routers (arXiv 2504.06803)."""

    kind: ClassVar[str] = "dysit"


class SiT(DiT):
    """Predicts a velocity (or a score, or noise), B C S S, from a noisy input, a timestep in [0, 1] and a class."""

    config: SiTConfig

    def head(self, h: Tensor, c: Tensor) -> Tensor:
        return super().head(h, c)[:, : self.config.in_channels]


class DySiT(DynamicBackbone, SiT):
    """A Dynamic SiT."""

    config: DySiTConfig
    make_block = DyDiT.make_block


def infer(weights: Weights, hints: Hints) -> Inferred:
    """As a DiT's, whose names and shapes they are."""
    return dit.infer(weights, hints, SiTConfig, DySiTConfig, **flow_fields(hints))


# the training scripts' words for ours
WORDS = {"v": "velocity", "cosine": "gvp"}


def flow_fields(hints: Hints) -> dict[str, Any]:
    """The fields of `FlowConfig` that are said, or that a training script stored; the others are usual."""
    stored = {"path": "path_type", "prediction": "prediction", "loss_weight": "loss_weight"}
    found = {ours: str(hints.trained[theirs]).lower() for ours, theirs in stored.items() if theirs in hints.trained}
    said = {"path": hints.flow_path, "prediction": hints.prediction, "noise_at": hints.noise_at}
    values: dict[str, Any] = {**found, **{name: value for name, value in said.items() if value is not None}}
    return {name: WORDS.get(value, value) for name, value in values.items()}


FAMILY = Family(
    name="sit",
    static_config=SiTConfig,
    dynamic_config=DySiTConfig,
    static_model=SiT,
    dynamic_model=DySiT,
    sizes={
        **{name.replace("DiT", "SiT"): size for name, size in dit.FAMILY.sizes.items()},
        "SiT-XL/2-512": {**dit.FAMILY.sizes["DiT-XL/2"], "input_size": 64, "learn_sigma": False},
    },
    published_giga={"SiT-XL/2": 119, "SiT-XL/2-512": 525},
    process="flow",
    matches=dit.matches,  # a state dict cannot tell a SiT from a DiT: it is asked for by name
    infer=infer,
    fill=dit.fill,
)
