"""Our models inside diffusers' DiTPipeline, a DyDiT with its skipped work left out."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dydit_cli.errors import DyditError
from dydit_cli.model.dit import DiT
from dydit_cli.model.sparse import Executable, Execution, executor

PIPELINE_NULL_CLASS = 1000  # written into DiTPipeline


@dataclass
class TransformerOutput:
    """As diffusers': the prediction is in `sample`."""

    sample: Tensor


class DiffusersTransformer(nn.Module):
    """`model` with the interface of DiTTransformer2DModel, for `DiTPipeline(transformer=..., vae=..., scheduler=...)`.

    The pipeline's class 1000, which it takes for "no class", becomes the model's null class. Raises `DyditError` for a
    model of more than 1,000 classes, in which 1000 is a class.
    """

    def __init__(self, model: Executable) -> None:
        super().__init__()
        config = model.config
        if config.num_classes > PIPELINE_NULL_CLASS:
            raise DyditError(
                f"the model has {config.num_classes} classes, and DiTPipeline takes class {PIPELINE_NULL_CLASS} for none; "
                "sample it with dydit sample"
            )
        self.model = model
        self.null_class = config.null_class
        self.config = SimpleNamespace(
            sample_size=config.input_size,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            patch_size=config.patch_size,
            num_embeds_ada_norm=config.num_classes,
        )

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool = True, **unused: Any
    ) -> TransformerOutput | tuple[Tensor]:
        """hidden_states: B C S S; timestep, class_labels: B -> sample B Cout S S."""
        labels = class_labels.masked_fill(class_labels == PIPELINE_NULL_CLASS, self.null_class)
        sample = self.model(hidden_states, timestep, labels)
        return TransformerOutput(sample) if return_dict else (sample,)


def as_diffusers(model: Executable, execution: Execution = "sparse") -> DiffusersTransformer:
    """What `load` returned, ready to be a DiTPipeline's transformer; a DyDiT is run as `execution` says."""
    return DiffusersTransformer(executor(model, execution) if isinstance(model, DiT) else model)
