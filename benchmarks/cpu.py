"""Sparse execution against the static model on this machine's cpu, over sizes, batches and FLOPs ratios.

    python benchmarks/cpu.py --out benchmarks/cpu.md

runs `dydit bench --compile` for every row and writes a table; `--only DiT-B/2` takes the rows of one size, `--no-compile`
leaves torch.compile out. Keep the machine otherwise idle.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch

from dydit_cli.artifacts.bench import BenchResult, Spread
from dydit_cli.artifacts.bench_options import BenchSettings
from dydit_cli.bench.bench import bench
from dydit_cli.files import write_text

RATIOS = (0.3, 0.5, 0.7)
# (model, batch, steps that are run of the 50, repeats)
ROWS = (
    ("DiT-S/2", 8, 16, 3),
    ("DiT-S/2", 32, 4, 3),
    ("DiT-B/2", 4, 12, 3),
    ("DiT-B/2", 16, 4, 3),
    ("DiT-XL/2", 2, 12, 2),
    ("DiT-XL/2", 8, 3, 2),
    ("SiT-S/2", 8, 8, 3),
    ("LightningDiT-B/1", 4, 8, 3),
    ("Latte-S/2", 1, 4, 3),
)
KINDS = ("static", "static compiled", "sparse", "sparse compiled")
HEADER = (
    "| model | batch | FLOPs ratio | static [s] | compiled [s] | sparse [s] | fused [s] | speed-up | efficiency | "
    "over compiled | steps run |\n" + "|---" * 11 + "|"
)


def row(result: BenchResult) -> str:
    """One line of the table; seconds are of 50 model evaluations, planning included; efficiencies with their quartiles."""
    settings, eager = result.settings, result.efficiencies["static"]
    seconds = " | ".join(f"{result.seconds[kind].median:.1f}" if kind in result.seconds else "" for kind in KINDS)
    over_compiled = result.efficiencies.get("static compiled")
    return (
        f"| {result.model} | {settings.batch} | {result.flops_ratio:.3f} | {seconds} "
        f"| {eager.median / result.flops_ratio:.2f} | {_spread(eager)} | {_spread(over_compiled) if over_compiled else ''} "
        f"| {settings.count} x {settings.repeats} |"
    )


def _spread(values: Spread) -> str:
    return f"**{values.median:.3f}** ({values.low:.3f} to {values.high:.3f})"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help="models, or a model and a batch, such as DiT-S/2,DiT-B/2:4")
    parser.add_argument("--ratios", default=",".join(str(ratio) for ratio in RATIOS))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    lines = [
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, fp32, 50 steps, 256 tokens",
        "",
        HEADER,
    ]
    print("\n".join(lines), flush=True)
    for model, batch, measured, repeats in ROWS:
        if options.only and not {model, f"{model}:{batch}"} & set(options.only.split(",")):
            continue
        for ratio in options.ratios.split(","):
            settings = BenchSettings(batch=batch, measured=measured, repeats=repeats, masked=False, compile=options.compile)
            lines.append(row(bench(model=model, flops_ratio=float(ratio), settings=settings, device="cpu")))
            print(lines[-1], flush=True)
    if options.out:
        write_text(options.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
