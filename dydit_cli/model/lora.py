"""LoRA (Hu et al., arXiv 2106.09685): a product of two thin matrices beside each Linear of the blocks' sites.

The Linears are those of the family's own `ModelConfig.sites`, so that every family has them. Adapters are for training; what
is run afterwards has them merged.

Legend: ... any, I inputs and O outputs of a Linear, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dydit_cli.model.backbone import Backbone
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.sites import Weights

A, B = "lora_A", "lora_B"  # peft's names


@dataclass(frozen=True)
class Lora:
    """What is added to weights: `scale` times B A. `pairs` are A (R I) and B (O R) by the name of their Linear."""

    scale: float
    pairs: Mapping[str, tuple[Tensor, Tensor]]

    def merged(self, weights: Mapping[str, Tensor]) -> Weights:
        """The `weights` in float32 with the product added to each Linear's; of the meta device, their shapes alone."""
        result = {name: w.float() for name, w in weights.items()}
        for name, (a, b) in self.pairs.items():
            weight = result[f"{name}.weight"]
            if not weight.is_meta:
                result[f"{name}.weight"] = weight + self.scale * (b.float() @ a.float())  # O I
        return result


class LoraLinear(nn.Linear):
    """A Linear whose own weights, which it shares with `linear`, do not learn, with scale * B A beside them.

    A is drawn as a Linear's weights usually are and B begins at zero, so that it computes exactly what `linear` does.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float, generator: torch.Generator) -> None:
        nn.Module.__init__(self)  # a Linear's own would draw weights
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self.scale = linear.weight, linear.bias, scale
        self.original = (linear,)  # in a tuple, so that each weight is this module's once
        device = linear.weight.device
        self.lora_A = nn.Linear(self.in_features, rank, bias=False, device=device)
        self.lora_B = nn.Linear(rank, self.out_features, bias=False, device=device)
        drawn = torch.rand(rank, self.in_features, generator=generator) * 2 - 1  # R I, on the cpu: alike on every device
        with torch.no_grad():
            self.lora_A.weight.copy_(drawn / math.sqrt(self.in_features))
            self.lora_B.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """x: ... I -> ... O."""
        return F.linear(x, self.weight, self.bias) + self.scale * self.lora_B(self.lora_A(x))


def site_linears(config: ModelConfig) -> list[str]:
    """The names of the Linears of every site of every block."""
    return [
        f"{block}.{name}"
        for i, block in enumerate(config.block_names())
        for site in config.sites(i)
        for name in (*site.inputs, site.output)
    ]


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is an adapter's."""
    return f".{A}." in name or f".{B}." in name


def add_lora(model: Backbone, rank: int, alpha: float, seed: int) -> None:
    """Puts adapters beside the Linears of `model`, in place, and freezes everything but them and the routers that learn; the
    function stays exactly what it was. `alpha` is rank times the scale."""
    for name, p in model.named_parameters():
        if not model.config.is_router(name):
            p.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in site_linears(model.config):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, LoraLinear(linear, rank, alpha / rank, generator))


@torch.no_grad()
def merge_lora(model: Backbone) -> Lora:
    """Merges the adapters that `add_lora` put into `model`, in place, and returns them, on the cpu; what was frozen for them
    stays so."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    lora = Lora(
        next(iter(adapted.values())).scale,
        {name: (m.lora_A.weight.detach().cpu(), m.lora_B.weight.detach().cpu()) for name, m in adapted.items()},
    )
    merged = lora.merged({f"{name}.weight": module.weight.detach().cpu() for name, module in adapted.items()})
    for name, module in adapted.items():
        module.weight.copy_(merged[f"{name}.weight"])
        model.set_submodule(name, module.original[0])
    return lora
