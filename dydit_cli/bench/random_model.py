"""A DyDiT of any size with random weights, whose routers are set so that it runs at a chosen FLOPs ratio.

Speed does not depend on what the weights are, so no checkpoint is needed to measure it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import DynamicBackbone, RoutedBlock
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.families import build_model, with_routers

WEIGHT_STD = 0.02

CALIBRATION_BATCH = 4


@torch.no_grad()
def random_dydit(
    config: ModelConfig, ratio: float, timesteps: Sequence[float], seed: int = 0, device: torch.device | str = "cpu"
) -> DynamicBackbone:
    """Heads are on for a share `ratio` of the timesteps, channel groups and tokens each for its square root, so that
    attention and MLP both cost `ratio` of what they would.

    Every head and group has its own timesteps, as trained ones have; tokens are chosen by their content. Raises
    `DyditError` for a ratio that the always-on head does not allow.
    """
    H = config.num_heads
    if not 1 / H < ratio <= 1:
        least = f"with {H} heads, one of them always on, it must be over {1 / H:.3f} and at most 1"
        raise DyditError(f"FLOPs ratio {ratio:g}: {least}")
    torch.manual_seed(seed)
    with torch.device(device):
        model = cast(DynamicBackbone, build_model(with_routers(config))).eval()
    for name, p in model.trainable():  # biases are 0, and norms' weights 1
        of_norm = p.dim() == 1 and not name.endswith("bias")
        nn.init.normal_(p, mean=float(of_norm), std=WEIGHT_STD if p.dim() > 1 else 0.0)
    if ratio == 1:
        model.reset_routers()
        return model
    every_e = model.embed_timestep(torch.tensor(list(timesteps)))  # T C, as all of this on the model's device
    generator = torch.Generator().manual_seed(seed)
    batch = CALIBRATION_BATCH
    t = torch.tensor([timesteps[i * (len(timesteps) - 1) // max(1, batch - 1)] for i in range(batch)])
    x = torch.randn(batch, *config.sample_shape, generator=generator).to(device)
    e = model.embed_timestep(t)  # B C
    c = model.condition(e, torch.zeros(batch, dtype=torch.long, device=device))  # B C
    h, part = model.embed(x), ratio**0.5
    for i, block in enumerate(model.routed_blocks):
        h = model.enter_block(i, h)
        for width, share in ((block.head_router, ratio), (block.group_router, part)):
            _set_width(width.last, every_e, (share * H - 1) / (H - 1), generator)
        for layer in (block.token_router.first, block.token_router.last):
            _normal(layer.weight, generator)
        block.token_router.last.bias.sub_(torch.quantile(_token_logits(block, h, c), 1 - part))
        h, _ = block.forward_routed(h, c, e, noise=0.0)
    return model


def _set_width(router: nn.Linear, e: Tensor, share: float, generator: torch.Generator) -> None:
    """Random weights; each row's bias so that it is on at about `share` of the timesteps, the rows spread around it."""
    _normal(router.weight, generator)
    logits = e @ router.weight.T  # T H-1
    rows = router.out_features
    spread = torch.linspace(-0.5, 0.5, rows)[torch.randperm(rows, generator=generator)] * min(share, 1 - share)
    for row, own in enumerate((share + spread).clamp(0, 1).tolist()):
        ordered = logits[:, row].sort(descending=True).values
        count = round(own * len(ordered))
        above = ordered[count - 1] if count else ordered[0] + 2
        below = ordered[count] if count < len(ordered) else ordered[-1] - 2
        router.bias[row] = -(above + below) / 2


def _normal(weight: Tensor, generator: torch.Generator) -> None:
    weight.copy_(torch.randn(weight.shape, generator=generator) * (2 / sum(weight.shape)) ** 0.5)


def _token_logits(block: RoutedBlock, h: Tensor, c: Tensor) -> Tensor:
    """The token router's logits for this input, (BN,)."""
    seen: list[Tensor] = []
    hook = block.token_router.last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    block.forward_routed(h, c, c, noise=0.0)
    hook.remove()
    return seen[0].flatten()
