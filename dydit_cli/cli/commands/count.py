"""Count the exact MACs of any of diffusers' transformers, attention included, from its configuration alone.

The model runs once on the meta device: no weights are read. A class by its name has its own defaults.

Example: `dydit count FluxTransformer2DModel --size 1024 --text-tokens 512`
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Literal

from dydit_cli import units
from dydit_cli.cli import console, options
from dydit_cli.flops.options import CountOptions
from dydit_cli.options import Arg, Opt

if TYPE_CHECKING:
    from dydit_cli.flops.transformers import TransformerCount


def count(
    source: Annotated[
        str,
        Arg(
            "FOLDER_OR_CLASS",
            "A folder of diffusers, a model's or a pipeline's, a config.json, or such as `SD3Transformer2DModel`.",
        ),
    ],
    config: CountOptions,
    unit: Annotated[Literal["mac", "flop"], Opt("What is shown: mac, or flop (2 per MAC). JSON holds MACs.")] = "mac",
    json: options.Json = False,
) -> None:
    from dydit_cli.flops.transformers import count_transformer

    counted = count_transformer(source, config)
    if json:
        console.as_json(counted.to_dict())
    else:
        show(counted, unit)


def show(counted: TransformerCount, unit: str) -> None:
    """The parts in the model's own order, those under a thousandth together."""
    macs, total = counted.macs, counted.macs.total()
    shown = [part for part in counted.parts if part.macs.total() >= total / 1000]
    rest = [part for part in counted.parts if part not in shown]
    rows = [(f"{part.part} ({part.count})" if part.count > 1 else part.part, part.macs) for part in shown]
    rows += [(f"{len(rest)} other parts", sum((part.macs for part in rest), Counter()))] if rest else []
    console.table(
        f"{counted.name}: {counted.parameters / 1e6:.1f} M parameters, one call",
        ["", "attention", units.name(unit), "share"],
        [
            [
                name,
                units.work(own["attention"], unit) if own["attention"] else "",
                units.work(own.total(), unit),
                units.share(own.total() / total),
            ]
            for name, own in [*rows, ("all", macs)]
        ],
    )
    calls = ", ".join(f"{calls} x ({queries} x {keys})" for (queries, keys), calls in counted.attention.items())
    console.say(
        f"{units.convention(unit)}; of which {', '.join(f'{kind} {units.work(own, unit)}' for kind, own in macs.items())}\n"
        f"products alone (linear, convolution, attention; no norms): {units.work(counted.products, unit)}\n"
        f"inputs: {', '.join(f'{name} {shape}' for name, shape in counted.inputs.items())}\n"
        f"attention by torch's function, calls x (queries x keys): {calls or 'none'}"
    )
    if counted.ignored:
        console.note(f"warning: this diffusers' {counted.name} does not know {', '.join(counted.ignored)}; left out")
    for name, times in counted.unknown.items():
        console.note(f"warning: not counted: {name}, {times} calls")
