"""Say what a checkpoint is, and where it came from.

Example: `dydit inspect digits-dit`
"""

from __future__ import annotations

from typing import Annotated

from dydit_cli import units
from dydit_cli.cli import console, options
from dydit_cli.options import Arg, Opt


def inspect(
    path: Annotated[str, Arg("PATH", "A checkpoint of any format, or a bundled one, such as `digits-dit`.")],
    loading: options.LoadingWithoutRatio,
    check: Annotated[bool, Opt("Read all the weights, not their headers alone, and refuse NaN and Inf.")] = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.checkpoint.inspect import inspect as run
    from dydit_cli.checkpoint.lineage import describe
    from dydit_cli.model.config import RoutedConfig
    from dydit_cli.model.families import config_from_dict
    from dydit_cli.model.latent_norm import LatentNorm

    report = run(path, loading, check=check)
    if json:
        console.as_json(report)
        return
    process, model, config = report["process"], report["model"], config_from_dict(report["model"])
    shown = {
        "found": report["found"] + "".join(f"; {note}" for note in report["notes"]),
        "kind": f"{config.model_name} ({'dynamic' if config.dynamic else 'static'})",
        "process": f"{process['name']}, predicts {process['predicts']}"
        + (f" on the {process['path']} path" if "path" in process else "")
        + f"; t from {process['t']}, noise at {process['noise_at']}",
        "guidance": "on all channels" if report["guided_channels"] == "all" else "on the first 3 channels",
        "size": f"{report['size']}: depth {model['depth']}, width {model['hidden_size']}, {model['num_heads']} heads",
        "parameters": f"{report['parameters']:,} ({report['bytes'] / 1e6:.1f} MB, {report['dtype']})",
        "values": "all finite" if report["finite"] else "not read; --check reads them",
        "tokens": f"{report['tokens']}: {config.patches}",
        "classes": f"{config.num_classes} and the null class" if config.num_classes else "none: labels count for nothing",
        "class names": f"{len(report['labels'])}, such as {next(iter(report['labels'].values()))!r}"
        if report["labels"]
        else "none",
        "VAE": report["vae"] or "none beside it",
        "variance": "learned" if model["learn_sigma"] else "fixed",
        "timestep sinusoid": f"{model['timestep_variant']} (norm2 eps {model['norm2_eps']:g})",
        "static MACs": f"{units.macs(report['macs_static'])} per forward and image",
        "routers": f"{report['router_parameters']:,} parameters, 3 in each block" if report["router_parameters"] else "none",
    }
    if isinstance(config, RoutedConfig) and config.budgets:
        shown["FLOPs ratios"] = (
            f"{config.budgets[0]:g} to {config.budgets[-1]:g}, measured at {len(config.measured)} settings"
            + (", allocated by timestep" if config.allocation else "")
        )
    if report["latents"]:
        shown["latents"] = f"{LatentNorm.from_dict(report['latents']).describe()} of the VAE's z"
    for i, entry in enumerate(report["lineage"]):
        shown["lineage" if i == 0 else " " * i] = describe(entry)
    console.facts(path, shown)
