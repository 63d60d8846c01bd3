"""Static to dynamic: rank, add routers, prove that nothing changed, write."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from dydit_cli.checkpoint import lineage
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import WEIGHTS_FILE, write_description
from dydit_cli.checkpoint.read import CheckpointLike, LoadOptions, read
from dydit_cli.checkpoint.stream import SafetensorsWriter
from dydit_cli.compress.equivalence import EquivalenceCheck
from dydit_cli.compress.structures import RankingName, rank_block
from dydit_cli.errors import DyditError
from dydit_cli.files import atomic_folder, check_output
from dydit_cli.model.config import DyDiTConfig
from dydit_cli.model.dydit import DyDiT
from dydit_cli.model.routers import HEAD_AND_GROUP_BIAS, TOKEN_BIAS, TokenRouter, WidthRouter
from dydit_cli.seeds import check_seed

TOLERANCE = 1e-4

# Under this width a router has too few inputs to move a bias of 15 within a short fine-tuning.
NARROW_WIDTH, NARROW_BIAS, NARROW_TOKEN_BIAS = 256, 5.0, 10.0


@dataclass(frozen=True)
class Conversion:
    """What `convert` did. `max_difference` is the largest between the static and the dynamic model's outputs on
    `proof_inputs` random inputs, `output_scale` the largest static output among them; `trained_on` is the data set that the
    static model's lineage names last."""

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
    trained_on: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def default_biases(width: int) -> tuple[float, float]:
    """The routers' initial bias for heads and groups, and for tokens: the paper's 15 and 35, or 5 and 10 if narrow."""
    return (NARROW_BIAS, NARROW_TOKEN_BIAS) if width < NARROW_WIDTH else (HEAD_AND_GROUP_BIAS, TOKEN_BIAS)


def fresh_routers(config: DyDiTConfig, i: int, bias: float, token_bias: float, every_e: Tensor) -> dict[str, Tensor]:
    """New router weights of block `i` under their full names, drawn from torch's generator. every_e: 1000 C, the
    embeddings of all timesteps."""
    width, rows = config.hidden_size, config.router_rows
    heads, groups = (WidthRouter(width, rows, config.always_on) for _ in range(2))
    tokens = TokenRouter(width, config.token_router_hidden)
    for router in (heads, groups):
        router.reset(bias)
        router.shrink(every_e)
    tokens.reset(token_bias)
    modules = {"attn_rate": heads, "mlp_rate": groups, "token_selection": tokens}
    return {f"blocks.{i}.{part}.{name}": w for part, module in modules.items() for name, w in module.state_dict().items()}


def convert(
    source: CheckpointLike,
    destination: str | Path,
    *,
    ranking: RankingName = "magnitude",
    router_bias: float | None = None,
    token_router_bias: float | None = None,
    seed: int = 0,
    reading: LoadOptions = LoadOptions(),
    force: bool = False,
) -> Conversion:
    """Converts the static checkpoint `source`, of any format, to a DyDiT in the folder `destination`.

    Raises `DyditError` where the source is no static checkpoint, the destination exists (without `force`), or the
    result differs from the static model by more than 1e-4 on random inputs; then nothing is written.
    """
    destination = check_output(destination, force)
    if ranking not in get_args(RankingName):
        raise DyditError(f"no ranking {ranking!r}; choose one of {', '.join(get_args(RankingName))}")
    check_seed(seed)
    static = read(source, reading)
    if isinstance(static.config, DyDiTConfig):
        raise DyditError(f"{static.path}: is a DyDiT already; fine-tune it: dydit finetune {static.path} --out DIR")
    bias, token_bias = default_biases(static.config.hidden_size)
    bias = bias if router_bias is None else router_bias
    # what the random weights of a token router add can outweigh a low bias: then a higher one, unless one was asked for
    tries = [token_bias, 2 * token_bias, 4 * token_bias] if token_router_bias is None else [token_router_bias]

    try:
        config = DyDiTConfig.from_static(static.config)
    except DyditError as error:  # a pruned model whose channels do not fall into as many groups as it has heads, say
        raise DyditError(f"{static.path}: {error}") from None
    with torch.device("meta"):
        shapes = DyDiT(config).state_dict()
    for token_bias in tries:
        step = lineage.entry("convert", static, ranking=ranking, router_bias=bias, token_router_bias=token_bias)
        description = replace(static, config=config, weights=shapes, lineage=[*static.lineage, step])
        try:
            proof = _write(static, description, destination, ranking, bias, token_bias, seed)
            break
        except TokensOffError:
            if token_bias == tries[-1]:
                raise
    difference, scale = proof.result()
    report = Conversion(
        source=str(static.path),
        found="; ".join((static.found, *static.notes)),
        destination=str(destination),
        parameters_static=sum(w.numel() for w in static.weights.values()),
        parameters_dynamic=sum(w.numel() for w in shapes.values()),
        ranking=ranking,
        router_bias=bias,
        token_router_bias=token_bias,
        max_difference=difference,
        output_scale=scale,
        proof_inputs=proof.inputs,
        trained_on=static.trained_on,
    )
    return report


def _dtype(static: Checkpoint, name: str) -> torch.dtype:
    """What the source has; routers are float32."""
    return static.weights[name].dtype if name in static.weights else torch.float32


class TokensOffError(DyditError):
    """A token router of the new model is off where all have to be on."""


def _write(
    static: Checkpoint,
    dynamic: Checkpoint,
    destination: Path,
    ranking: RankingName,
    bias: float,
    token_bias: float,
    seed: int,
) -> EquivalenceCheck:
    """Writes `static` with new routers as `dynamic` (whose weights are shapes alone), where it is proven to be the same."""
    config = dynamic.config
    assert isinstance(config, DyDiTConfig)
    proof = EquivalenceCheck(static, config, seed)
    torch.manual_seed(seed)
    layout = {name: (_dtype(static, name), tuple(w.shape)) for name, w in dynamic.weights.items()}
    with atomic_folder(destination) as temporary:
        # one block at a time: ranked, proven and written, so that no second model is ever in memory
        with SafetensorsWriter(temporary / WEIGHTS_FILE, layout) as out:
            for name, w in static.weights.items():
                if not name.startswith("blocks."):
                    out.write(name, w)
            for i in range(config.depth):
                routers = fresh_routers(config, i, bias, token_bias, proof.every_e)
                block = rank_block(static.weights, i, config, ranking) | routers
                proof.block(i, block)
                for name, w in block.items():
                    out.write(name, w)
                del block  # before the next one is made
        difference, _ = proof.result()
        if not difference <= TOLERANCE or proof.off_timesteps:
            raise (TokensOffError if proof.off_tokens else DyditError)(
                f"{static.path}: converted, it differs from the static model by {difference:.1e} (allowed: {TOLERANCE:.0e}); "
                f"routers of {proof.off_timesteps} blocks and timesteps and of {proof.off_tokens} tokens start switched off; "
                f"raise --router-bias (now {bias:g}) or --token-router-bias (now {token_bias:g})"
            )
        write_description(dynamic, temporary)
    return proof
