"""Turn a static DiT into a DyDiT that computes the same, and prove it.

Example: `dydit convert digits-dit runs/digits-dydit`
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from dydit_cli.cli import console, options
from dydit_cli.cli.planning import Planned, planned
from dydit_cli.cli.training import show_next
from dydit_cli.compress.options import ConvertOptions
from dydit_cli.options import Arg

PLANNED = True


def convert(
    source: Annotated[str, Arg("SRC", "A static checkpoint of any format, or a bundled one, such as `digits-dit`.")],
    destination: Annotated[Path, Arg("DST", "The folder to write.")],
    config: ConvertOptions,
    loading: options.LoadingWithoutRatio,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.compress.convert import TOLERANCE
    from dydit_cli.compress.convert import convert as run

    if planned():
        from dydit_cli.costs.others import conversion_plan

        raise Planned(conversion_plan(options.read(source, loading), destination, config, force))
    report = run(source, destination, config, reading=loading, force=force)
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
    show_next(destination, report.trained_on, " --flops-ratio 0.5")
