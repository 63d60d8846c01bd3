"""A model with the interface of diffusers' DiTTransformer2DModel, whose blocks others' caches can attach to.

Caches that are made for diffusers (its own hooks, cache-dit) call blocks that take hidden states and return hidden states, or
leave them out. The blocks here are such ones, in a list under the name that diffusers' class has for it; each runs as the
executor runs it, masked or with the skipped work left out.

Legend: B batch, N tokens, C width.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

from dydit_cli.errors import DyditError
from dydit_cli.model.execution import Executable

PIPELINE_NULL_CLASS = 1000  # written into DiTPipeline


@dataclass
class TransformerOutput:
    """As diffusers': the prediction is in `sample`."""

    sample: Tensor


class HiddenStatesBlock(nn.Module):
    """Block number `index` of a running model. `steps` holds, during a pass, what runs the blocks of it."""

    def __init__(self, index: int, steps: list[Callable[[int, Tensor], Tensor]]) -> None:
        super().__init__()
        self.index, self._steps = index, steps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """B N C -> B N C; what is given stays as it is, since a cache may compare it with what is returned."""
        return self._steps[-1](self.index, hidden_states.clone())


class DiffusersTransformer(CacheMixin, nn.Module):
    """`model` with the interface of DiTTransformer2DModel, for `DiTPipeline(transformer=..., vae=..., scheduler=...)`.

    The pipeline's class 1000, which it takes for "no class", becomes the model's null class. diffusers' caches attach by
    `enable_cache(config)`, cache-dit by `cache_dit.enable_cache(pipeline)`. Raises `DyditError` for a model of more than 1,000
    classes, in which 1000 is a class.
    """

    def __init__(self, model: Executable) -> None:
        super().__init__()
        config = model.config
        if config.num_classes > PIPELINE_NULL_CLASS:
            raise DyditError(
                f"the model has {config.num_classes} classes, and DiTPipeline takes class {PIPELINE_NULL_CLASS} for none; "
                "sample it with dydit sample"
            )
        register_block()
        self.model = model
        self.null_class = config.null_class
        self.config = SimpleNamespace(
            sample_size=config.input_size,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            patch_size=config.patch_size,
            num_embeds_ada_norm=config.num_classes,
        )
        self._steps: list[Callable[[int, Tensor], Tensor]] = []
        self.transformer_blocks = nn.ModuleList(HiddenStatesBlock(i, self._steps) for i in range(config.depth))

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.model.device

    def plan(self, timesteps: Sequence[float]) -> None:
        """Tells the model a run's timesteps, which a cache between steps waits for: after `scheduler.set_timesteps(N)`
        `scheduler.timesteps.tolist()`."""
        self.model.plan(timesteps)

    def __call__(self, *args: Any, **more: Any) -> Any:
        """As `forward`. Hooks of diffusers want a context, which DiTPipeline does not give."""
        hooked = any(hasattr(module, "_diffusers_hook") for module in self.modules())
        context: AbstractContextManager[None] = self.cache_context("both halves") if hooked else nullcontext()
        with context:
            return super().__call__(*args, **more)

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool = True, **unused: Any
    ) -> TransformerOutput | tuple[Tensor]:
        """hidden_states: B C S S; timestep, class_labels: B -> sample B Cout S S."""
        labels = class_labels.masked_fill(class_labels == PIPELINE_NULL_CLASS, self.null_class)
        backbone = self.model.backbone
        backbone.through = self._through
        try:
            sample = self.model(hidden_states, timestep, labels)
        finally:
            backbone.through = None
        return TransformerOutput(sample) if return_dict else (sample,)

    def _through(self, h: Tensor, step: Callable[[int, Tensor], Tensor]) -> Tensor:
        """h: B N C. The list is looked up anew: during a pass cache-dit has another in its place."""
        self._steps.append(step)
        try:
            for block in self.transformer_blocks:
                h = block(h)
        finally:
            self._steps.pop()
        return h


def register_block() -> None:
    """Tells diffusers what a block takes and returns, where its version asks for that."""
    with suppress(ImportError):
        helpers: Any = importlib.import_module("diffusers.hooks._helpers")
        known = helpers.TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
        helpers.TransformerBlockRegistry.register(HiddenStatesBlock, known)
