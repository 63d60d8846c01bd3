"""Static to dynamic: rank, add routers, prove that nothing changed, write."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.ranking import RankingName, rank
from dydit_cli.checkpoint.read import Reading, read
from dydit_cli.errors import DyditError
from dydit_cli.files import check_output
from dydit_cli.model.config import DyDiTConfig
from dydit_cli.model.dit import DiT
from dydit_cli.model.dydit import DyDiT
from dydit_cli.model.routers import HEAD_AND_GROUP_BIAS, TOKEN_BIAS

TOLERANCE = 1e-4
PROOF_BATCH = 16
# Under this width a router has too few inputs to move a bias of 15 within a short fine-tuning.
NARROW_WIDTH, NARROW_BIAS, NARROW_TOKEN_BIAS = 256, 5.0, 10.0


@dataclass(frozen=True)
class Conversion:
    """What `convert` did. `max_difference` is the largest between the static and the dynamic model's outputs on
    `proof_inputs` random inputs, `output_scale` the largest static output among them."""

    source: str
    found: str
    destination: str
    parameters_static: int
    parameters_dynamic: int
    ranking: str
    router_bias: float
    token_router_bias: float
    max_difference: float
    output_scale: float
    proof_inputs: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def default_biases(width: int) -> tuple[float, float]:
    """The routers' initial bias for heads and groups, and for tokens: the paper's 15 and 35, or 5 and 10 if narrow."""
    return (NARROW_BIAS, NARROW_TOKEN_BIAS) if width < NARROW_WIDTH else (HEAD_AND_GROUP_BIAS, TOKEN_BIAS)


def make_dynamic(
    static: Checkpoint, *, ranking: RankingName, router_bias: float, token_router_bias: float, seed: int
) -> Checkpoint:
    """`static` ranked and with fresh routers; nothing is written."""
    torch.manual_seed(seed)
    model = DyDiT(DyDiTConfig.from_static(static.config))
    model.reset_routers(router_bias, token_router_bias)
    routers = {name: p for name, p in model.state_dict().items() if name not in static.weights}
    weights = {**rank(static.weights, static.config, ranking), **routers}
    return replace(static, config=model.config, weights={name: w.contiguous() for name, w in weights.items()})


@torch.inference_mode()
def largest_difference(static: DiT, dynamic: DiT, seed: int) -> tuple[float, float]:
    """Largest absolute difference of the two models' outputs on random inputs, and the largest static output."""
    config = static.config
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(PROOF_BATCH, config.in_channels, config.input_size, config.input_size, generator=generator)
    t = torch.linspace(0, 999, PROOF_BATCH).long()
    y = torch.randint(0, config.num_classes + 1, (PROOF_BATCH,), generator=generator)
    expected = static(x, t, y)
    return (dynamic(x, t, y) - expected).abs().max().item(), expected.abs().max().item()


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    ranking: RankingName = "magnitude",
    router_bias: float | None = None,
    token_router_bias: float | None = None,
    seed: int = 0,
    reading: Reading = Reading(),
    force: bool = False,
) -> Conversion:
    """Converts the static checkpoint `source`, of any format, to a DyDiT in the folder `destination`.

    Raises `DyditError` where the source is no static checkpoint, the destination exists (without `force`), or the
    result differs from the static model by more than 1e-4 on random inputs; then nothing is written.
    """
    destination = check_output(destination, force)
    if ranking not in get_args(RankingName):
        raise DyditError(f"no ranking {ranking!r}; choose one of {', '.join(get_args(RankingName))}")
    static = read(source, reading)
    if isinstance(static.config, DyDiTConfig):
        raise DyditError(f"{source}: is a DyDiT already; fine-tune it: dydit finetune {source} --out DIR")
    bias, token_bias = default_biases(static.config.hidden_size)
    bias = bias if router_bias is None else router_bias
    token_bias = token_bias if token_router_bias is None else token_router_bias

    dynamic = make_dynamic(static, ranking=ranking, router_bias=bias, token_router_bias=token_bias, seed=seed)
    static_model, dynamic_model = static.build().float(), dynamic.build().float()
    difference, scale = largest_difference(static_model, dynamic_model, seed)
    if not difference <= TOLERANCE:
        raise DyditError(
            f"{source}: converted, it differs from the static model by {difference:.1e} (allowed: {TOLERANCE:.0e}): "
            f"a router starts switched off; raise --router-bias (now {bias:g}) or --token-router-bias (now {token_bias:g})"
        )
    report = Conversion(
        source=str(source),
        found=static.found,
        destination=str(destination),
        parameters_static=static_model.num_parameters(),
        parameters_dynamic=dynamic_model.num_parameters(),
        ranking=ranking,
        router_bias=bias,
        token_router_bias=token_bias,
        max_difference=difference,
        output_scale=scale,
        proof_inputs=PROOF_BATCH,
    )
    entry = {
        "action": "convert",
        "source": str(source),
        "found": static.found,
        "ranking": ranking,
        "router_bias": bias,
        "token_router_bias": token_bias,
    }
    write(replace(dynamic, lineage=[*static.lineage, entry]), destination)
    return report
