"""dydit convert"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dydit_cli.cli import console, options
from dydit_cli.cli.training import say_next


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A static checkpoint of any format, or `digits-dit`, `glyphs-dit`.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    ranking: Annotated[
        str, typer.Option(help="How heads and channels are ordered: magnitude, or none to leave them.")
    ] = "magnitude",
    router_bias: Annotated[
        float | None,
        typer.Option(help="Initial bias of the head and channel routers.", show_default="15, under width 256: 5"),
    ] = None,
    token_router_bias: Annotated[
        float | None, typer.Option(help="Initial bias of the token routers.", show_default="35, under width 256: 10")
    ] = None,
    weights: options.Weights = "ema",
    num_heads: options.NumHeads = None,
    input_size: options.InputSize = None,
    timestep_variant: options.TimestepVariant = None,
    seed: options.Seed = 0,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Turn a static DiT into a DyDiT that computes the same, and prove it.

    Example: `dydit convert digits-dit runs/digits-dydit`
    """
    from dydit_cli.compress.convert import TOLERANCE
    from dydit_cli.compress.convert import convert as run

    report = run(
        source,
        destination,
        ranking=ranking,
        router_bias=router_bias,
        token_router_bias=token_router_bias,
        seed=seed,
        reading=options.reading(weights, num_heads, input_size, timestep_variant),
        force=force,
    )
    if json:
        console.as_json(report.to_dict())
        return
    routers = report.parameters_dynamic - report.parameters_static
    console.facts(
        f"{source} -> {destination}",
        {
            "found": report.found,
            "parameters": f"{report.parameters_static:,} + {routers:,} in routers",
            "ranking": report.ranking,
            "router bias": f"{report.router_bias:g} (heads, groups), {report.token_router_bias:g} (tokens)",
            "largest difference": f"{report.max_difference:.1e} to the static model's output, which reaches "
            f"{report.output_scale:.2f} ({report.proof_inputs} random inputs; allowed: {TOLERANCE:.0e})",
        },
    )
    say_next(destination, report.trained_on, " --flops-ratio 0.5")


def register(app: typer.Typer) -> None:
    app.command()(convert)
