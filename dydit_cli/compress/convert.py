"""Static to dynamic: rank, add routers, prove that nothing changed, write."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dydit_cli.checkpoint import lineage
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import WEIGHTS_FILE, write_description
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import CheckpointLike, read
from dydit_cli.checkpoint.stream import SafetensorsWriter
from dydit_cli.compress.equivalence import EquivalenceCheck
from dydit_cli.compress.options import ConvertOptions
from dydit_cli.compress.structures import RANKINGS, rank_block
from dydit_cli.errors import DyditError
from dydit_cli.files import atomic_folder, check_output
from dydit_cli.model.backbone import DynamicBackbone, RoutedBlock
from dydit_cli.model.config import RoutedConfig
from dydit_cli.model.families import build_shapes, with_routers
from dydit_cli.model.routers import HEAD_AND_GROUP_BIAS, TOKEN_BIAS
from dydit_cli.model.sites import Weights
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


def fresh_routers(block: RoutedBlock, bias: float, token_bias: float, every_e: Tensor) -> Weights:
    """New router weights for a block on the meta device, by their names in it, drawn from torch's generator. every_e: T C,
    the embeddings of all timesteps."""
    routers = (block.head_router, block.group_router, block.token_router)
    for router in routers:
        # to_empty() would import sympy
        router.load_state_dict({name: torch.empty(w.shape) for name, w in router.state_dict().items()}, assign=True)
        for layer in router.modules():  # drawn as at construction too, so that a seed gives what it always gave
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    for width in routers[:2]:
        width.reset(bias)
        width.shrink(every_e)
    block.token_router.reset(token_bias)
    return {name: p.detach() for name, p in cast(nn.Module, block).named_parameters() if not p.is_meta}


def convert(
    source: CheckpointLike,
    destination: str | Path,
    options: ConvertOptions = ConvertOptions(),
    *,
    reading: LoadOptions = LoadOptions(),
    force: bool = False,
    **changes: Any,
) -> Conversion:
    """Converts the static checkpoint `source`, of any format, to a dynamic one in the folder `destination`.

    `changes` replace single fields of `options`, as in `convert(source, destination, ranking="none")`. Raises `DyditError`
    where the source is no static checkpoint, the destination exists (without `force`), or the result differs from the static
    model by more than 1e-4 on random inputs; then nothing is written.
    """
    destination = check_output(destination, force)
    options = replace(options, **changes)
    if options.ranking not in RANKINGS:
        raise DyditError(f"no ranking {options.ranking!r}; choose one of {', '.join(RANKINGS)}")
    check_seed(options.seed)
    static = read(source, reading)
    if static.config.dynamic:
        raise DyditError(f"{static.path}: is a DyDiT already; fine-tune it: dydit finetune {static.path} --out DIR")
    bias, token_bias = default_biases(static.config.hidden_size)
    bias = bias if options.router_bias is None else options.router_bias
    # what the random weights of a token router add can outweigh a low bias: then a higher one, unless one was asked for
    token_biases = [token_bias, 2 * token_bias, 4 * token_bias]
    if options.token_router_bias is not None:
        token_biases = [options.token_router_bias]
    try:
        config = with_routers(static.config, width_routing=options.width_routing, token_routing=options.token_routing)
    except DyditError as error:  # a pruned model whose channels do not fall into as many groups as it has heads, say
        raise DyditError(f"{static.path}: {error}") from None
    check, token_bias, count = _write(static, config, destination, options.ranking, bias, token_biases, options.seed)
    difference, scale = check.result()
    return Conversion(
        source=str(static.path),
        found="; ".join((static.found, *static.notes)),
        destination=str(destination),
        parameters_static=sum(w.numel() for w in static.weights.values()),
        parameters_dynamic=count,
        ranking=options.ranking,
        router_bias=bias,
        token_router_bias=token_bias,
        max_difference=difference,
        output_scale=scale,
        proof_inputs=check.inputs,
        trained_on=static.trained_on,
    )


def _dtype(static: Checkpoint, name: str) -> torch.dtype:
    """What the source has; routers are float32."""
    return static.weights[name].dtype if name in static.weights else torch.float32


def _write(
    static: Checkpoint,
    config: RoutedConfig,
    destination: Path,
    ranking: str,
    bias: float,
    token_biases: list[float],
    seed: int,
) -> tuple[EquivalenceCheck, float, int]:
    """Writes `static` with new routers where it is proven to be the same, with the first of `token_biases` that leaves every
    token on. Returns the check, that bias, and the number of parameters."""
    check = EquivalenceCheck(static, config, seed)
    model = build_shapes(config)
    shapes, thresholds = model.state_dict(), cast(DynamicBackbone, model).token_biases()
    torch.manual_seed(seed)
    layout = {name: (_dtype(static, name), tuple(w.shape)) for name, w in shapes.items()}
    with atomic_folder(destination) as temporary:
        # one block at a time: ranked, proven and written, so that no second model is ever in memory
        with SafetensorsWriter(temporary / WEIGHTS_FILE, layout) as out:
            for name, w in static.weights.items():
                if not config.blocks.match(name):
                    out.write(name, w)
            for i in range(config.depth):
                routers = fresh_routers(cast(RoutedBlock, model.blocks[i]), bias, token_biases[0], check.every_e)
                model.blocks[i] = nn.Identity()  # nothing of a block stays
                prefix = config.block_names()[i]
                block = rank_block(static.weights, i, config, ranking) | {f"{prefix}.{n}": w for n, w in routers.items()}
                check.block(i, block)
                for name, w in block.items():
                    if name not in thresholds:
                        out.write(name, w)
                del block  # before the next one is made
            # the tokens' thresholds come last: only now is it known which bias leaves all of them on
            token_bias = next((b for b in token_biases if not check.off_tokens(b)), token_biases[-1])
            for name in thresholds:
                out.write(name, torch.full(shapes[name].shape, float(token_bias)))
        difference, _ = check.result()
        if not difference <= TOLERANCE or check.off_timesteps or check.off_tokens(token_bias):
            raise DyditError(
                f"{static.path}: converted, it differs from the static model by {difference:.1e} (allowed: {TOLERANCE:.0e}); "
                f"routers of {check.off_timesteps} blocks and timesteps and of {check.off_tokens(token_bias)} tokens start "
                f"switched off; raise --router-bias (now {bias:g}) or --token-router-bias (now {token_bias:g})"
            )
        step = lineage.entry("convert", static, ranking=ranking, router_bias=bias, token_router_bias=token_bias)
        dynamic = replace(static, config=config, weights=shapes, lineage=[*static.lineage, step])
        write_description(dynamic, temporary)
    return check, token_bias, sum(w.numel() for w in shapes.values())
