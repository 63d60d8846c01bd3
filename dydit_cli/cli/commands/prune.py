"""Cut whole heads and MLP channels, or whole blocks, out of a static DiT: the smaller static model to compare DyDiT with.

Every block keeps as many heads and channels as the others; `--method depth` keeps some of the blocks, whole. Fine-tune it as
you would the DyDiT:
`dydit finetune runs/digits-pruned --out runs/digits-pruned-tuned`

Example: `dydit prune digits-dit runs/digits-pruned --method magnitude --keep 0.5`
"""

from __future__ import annotations

from dydit_cli import units
from dydit_cli.cli import console, options
from dydit_cli.cli.training import show_next
from dydit_cli.compress.options import PruneOptions


def prune(
    checkpoint: options.StaticCkpt,
    out: options.OutArgument,
    config: PruneOptions,
    loading: options.LoadingWithoutRatio,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.compress.prune import prune as run

    with console.stages() as work:
        report = run(
            checkpoint, out, config, reading=loading, device=device, force=force, on_stage=work.begin, on_work=work.advance
        )
    if json:
        console.as_json(report.to_dict())
        return
    width, before = report.heads * report.head_width, report.heads_before * report.head_width
    console.facts(
        f"{checkpoint} -> {out}",
        {
            "found": report.found,
            "method": f"{report.method}, from {report.seen}",
            "blocks": f"{report.depth} of {report.depth_before}: {', '.join(map(str, report.kept_blocks))}",
            "heads": f"{report.heads} of {report.heads_before} in each block (attention width {width} of {before})",
            "MLP channels": f"{report.mlp_width} of {report.mlp_width_before} in each block",
            "parameters": f"{report.parameters:,} of {report.parameters_before:,}",
            "MACs": f"{units.macs(report.macs)} of {units.macs(report.macs_before)} per forward and image: {report.ratio:.3f}",
            "attention, MLP": f"{report.routed_ratio:.3f} of their MACs (asked for: {report.keep:g})",
        },
    )
    show_next(out, report.trained_on)
