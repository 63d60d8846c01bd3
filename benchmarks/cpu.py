"""Sparse execution against the static model on this machine's cpu, over sizes, batches and FLOPs ratios.

    python benchmarks/cpu.py --out benchmarks/cpu.md

runs `dydit bench` for every row and writes a table; `--only DiT-B/2` takes the rows of one size, `--compile` adds the
static model under torch.compile as a baseline. Keep the machine otherwise idle.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch

from dydit_cli.bench.run import BenchResult, BenchSettings, Spread, bench
from dydit_cli.files import write_text

RATIOS = (0.3, 0.5, 0.7)
# (model, batch, steps that are run of the 50, repeats)
ROWS = (
    ("DiT-S/2", 8, 8, 3),
    ("DiT-S/2", 32, 3, 3),
    ("DiT-B/2", 4, 6, 3),
    ("DiT-B/2", 16, 3, 3),
    ("DiT-XL/2", 2, 4, 3),
    ("DiT-XL/2", 8, 2, 3),
)
HEADER = (
    "| model | batch | FLOPs ratio | static [s] | sparse [s] | speed-up | realised efficiency (quartiles) | steps run |\n"
    "|---|---|---|---|---|---|---|---|"
)


def row(result: BenchResult) -> str:
    """One line of the table; seconds are of 50 model evaluations, planning included."""
    settings, efficiency = result.settings, result.realised_efficiency
    return (
        f"| {result.model} | {settings.batch} | {result.flops_ratio:.3f} | {_seconds(result, result.baseline)} "
        f"| {_seconds(result, 'sparse')} | {result.speedup.median:.2f} | **{efficiency.median:.3f}** "
        f"({efficiency.low:.3f} to {efficiency.high:.3f}) | {len(settings.timesteps)} x {settings.repeats} |"
    )


def _seconds(result: BenchResult, kind: str) -> str:
    spread: Spread = result.seconds[kind]
    return f"{spread.median:.1f}" + (" (compiled)" if kind == "static compiled" else "")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help="models, or a model and a batch, such as DiT-S/2,DiT-B/2:4")
    parser.add_argument("--ratios", default=",".join(str(ratio) for ratio in RATIOS))
    parser.add_argument("--compile", action="store_true")
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
