"""Padded and sparse execution against the static model on one GPU: are they right there, and how fast.

    python benchmarks/gpu.py --out gpu.json --table gpu.md

First every family and execution is compared with masked execution on the cpu. Then steps of a guided sampling run are timed in
bf16: the static model eager, compiled and as a CUDA graph, against sparse execution in all its forms, and both with a cache
between steps; and training. It keeps to `--budget` seconds: what would take longer, the least important last, is left out, and
the result says so. Without a GPU, `--tiny` runs all of it on small models.

Static blocks are compiled one by one, as padded ones are, which takes seconds and not minutes; `--whole` compiles the static
model as one. Seconds of a step include those of what makes its launch wait for the step before.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dydit_cli.artifacts.bench import Spread
from dydit_cli.bench.random_model import random_dydit
from dydit_cli.devices import describe_device, pick_device, synchronize
from dydit_cli.diffusion.process import process_of, times
from dydit_cli.distributed import Distributed
from dydit_cli.files import write_json, write_text
from dydit_cli.model.backbone import Backbone, DynamicBackbone
from dydit_cli.model.caching import CacheOptions
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.cuda_graphs import CudaRecorder
from dydit_cli.model.execution import CachedModel, SparseModel, executor, static_twin
from dydit_cli.model.families import families, named_config
from dydit_cli.model.macs import static_macs, total_macs
from dydit_cli.model.options import EXECUTIONS, PaddedOptions
from dydit_cli.model.padded import PaddedModel, compiled_block, graphs_limit
from dydit_cli.model.routers import GateNoise
from dydit_cli.model.sparse import compiled
from dydit_cli.train.batch import Batch
from dydit_cli.train.recipe import read_recipe, with_settings
from dydit_cli.train.step import Trainer

Call = Callable[[Tensor, float, Tensor], Tensor]  # x, the timestep, labels
STEPS = 50  # of the sampling run whose timesteps are taken
CACHE = "fora:3"
SMALL: dict[str, Any] = {
    "input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 64, "depth": 2, "num_heads": 4, "num_classes": 10,
    "num_frames": 3,
}  # fmt: skip
WARM = 3  # runs in which a form measures its room, compiles and records
LONG = 30.0  # ms of a static step from which half of the repeats do
TOLERANCE = 1e-9  # of outputs relative to the largest, in float64
TRITON_TOLERANCE = 1e-5  # its kernels compute in float32


@dataclass(frozen=True)
class Sizes:
    """What is run: sizes of models and how many images at once, `measured` of the sampling steps, `repeats` times."""

    models: tuple[str, ...] = ("DiT-XL/2", "DiT-S/2", "DiT-B/2")
    batches: tuple[int, ...] = (1, 64, 8)
    ratios: tuple[float, ...] = (0.5, 0.3, 0.7)
    training: tuple[tuple[str, int], ...] = (("DiT-S/2", 128), ("DiT-XL/2", 32))
    measured: int = 10
    repeats: int = 5
    backend: str = "inductor"
    dtype: torch.dtype = torch.bfloat16
    compile_seconds: float = 60.0  # a guess, for the first row of a model


TINY = Sizes(
    ("tiny",), (2,), (0.5,), (("tiny", 4),), measured=2, repeats=2, backend="eager", dtype=torch.float64, compile_seconds=0.0
)


@dataclass
class Budget:
    """`seconds` in all; `allows` says whether there is time for something, and notes what there is none for."""

    seconds: float
    left_out: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self._began)

    def allows(self, what: str, seconds: float) -> bool:
        if seconds <= self.left:
            return True
        self.left_out.append(f"{what}: would take {seconds:.0f} s, and {max(0.0, self.left):.0f} s were left")
        return False


@dataclass(frozen=True)
class Bench:
    """One run of this benchmark."""

    device: torch.device
    sizes: Sizes
    budget: Budget
    whole: bool = False

    @property
    def graphs(self) -> bool:
        """Whether the device has CUDA graphs."""
        return self.device.type == "cuda"

    @property
    def triton(self) -> bool:
        """Whether Triton's kernels can run."""
        return self.graphs and importlib.util.find_spec("triton") is not None

    def config(self, name: str) -> ModelConfig:
        return small(families()["dit"].static_config) if name == "tiny" else named_config(name)


def small(of: type[ModelConfig]) -> ModelConfig:
    """A tiny configuration of any family."""
    names = {one.name for one in fields(of)}
    return of(**{name: value for name, value in SMALL.items() if name in names})


def run_timesteps(config: ModelConfig, count: int) -> list[float]:
    """So many of a sampling run's, the noisiest first."""
    process = process_of(config)
    grid = list(process.grid(STEPS))
    every = grid if process.timeline.rising else grid[::-1]
    return [every[round(i * (len(every) - 1) / max(1, count - 1))] for i in range(count)]


def inputs(config: ModelConfig, images: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As guidance doubles them: x 2B C S S, the same noise twice, and y (2B,), with classes and without."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, *config.sample_shape, generator=generator)
    y = torch.randint(0, config.null_class, (images,), generator=generator)
    y = torch.cat([y, torch.full_like(y, config.null_class)])
    return torch.cat([x, x]).to(device, dtype), y.to(device)


# is it right


def sparse_forms(model: DynamicBackbone, bench: Bench, capacity: float | None = None) -> dict[str, PaddedModel | SparseModel]:
    """Sparse execution in all its forms."""
    options, graphs = PaddedOptions(capacity), PaddedOptions(capacity, cuda_graphs=True)
    forms: dict[str, PaddedModel | SparseModel] = {
        "sparse": SparseModel(model),
        "sparse, fused": SparseModel(model),
        "padded": PaddedModel(model, options=options),
        "padded, compiled": PaddedModel(model, options=options),
    }
    if bench.graphs:
        forms |= {
            "padded, graph": PaddedModel(model, options=graphs),
            "padded, compiled, graph": PaddedModel(model, options=graphs),
        }
    if bench.triton:
        forms["padded, triton, graph"] = PaddedModel(model, options=replace(graphs, triton=True))
    for name, form in forms.items():
        if "fused" in name:
            form.pointwise = compiled(bench.sizes.backend)
        if "compiled" in name:
            cast(PaddedModel, form).run_block = compiled_block(bench.sizes.backend)
    return forms


@torch.no_grad()
def parity(bench: Bench) -> list[dict[str, Any]]:
    """Of every family, each execution on the device against masked execution on the cpu, in float64: the largest difference
    relative to the largest output. Each is called three times at each timestep, so that it measures, records and repeats."""
    rows = []
    for name, family in families().items():
        config = small(family.static_config)
        timesteps = run_timesteps(config, 3)
        model = random_dydit(config, 0.5, timesteps).double()
        x, y = inputs(config, 2, torch.device("cpu"), torch.float64)
        expected = {complete: [model(x, times(y, t), y, complete=complete) for t in timesteps] for complete in (False, True)}
        x, y = x.to(bench.device), y.to(bench.device)
        model.to(bench.device)
        runners: dict[str, Callable[..., Tensor]] = {
            **{execution: executor(model, execution) for execution in EXECUTIONS},
            **sparse_forms(model, bench),
            **{f"{form}, little room": runner for form, runner in sparse_forms(model, bench, 0.05).items() if "padded" in form},
            "sparse, views": SparseModel(model, access="views"),
            "sparse, copies": SparseModel(model, access="copies"),
            "static": static_twin(model),
        }
        for kind, runner in runners.items():
            first = name == next(iter(families()))
            if ("fused" in kind and not first) or ("compiled" in kind and not (first and "little room" in kind)):
                continue  # of one family, with little room and then with more: compiling takes longer than all the rest
            found = [[runner(x, times(y, t), y).cpu() for t in timesteps] for _ in range(3)]
            known = expected[kind in ("complete", "static")]
            difference = max(
                ((a - b).abs().max() / b.abs().max()).item() for outputs in found for a, b in zip(outputs, known, strict=True)
            )
            tolerance = TRITON_TOLERANCE if "triton" in kind else TOLERANCE
            rows.append({"family": name, "execution": kind, "difference": difference, "right": difference < tolerance})
    return rows


# how fast


def graph_of(model: Callable[..., Tensor], device: torch.device) -> Call:
    """A static model as one CUDA graph for all timesteps, copied in and out as a padded step is."""
    recorder, programs = CudaRecorder(device), {}
    at: dict[torch.Size, Tensor] = {}

    def call(x: Tensor, timestep: float, y: Tensor) -> Tensor:
        if x.shape not in programs:
            at[x.shape] = times(y, timestep)
            programs[x.shape], _ = recorder(lambda x, y: [model(x, at[x.shape], y)], x, y)
        at[x.shape].fill_(timestep)
        return programs[x.shape](x, y)[0]

    return call


def compiled_static(dynamic: DynamicBackbone, bench: Bench) -> Backbone:
    """The static model of the same weights, compiled."""
    static = static_twin(dynamic)
    for part in [static] if bench.whole else static.blocks:
        part.compile(dynamic=False, backend=bench.sizes.backend, **graphs_limit())
    return static


def static_forms(dynamic: DynamicBackbone, bench: Bench) -> dict[str, Call]:
    """The static model of the same weights: eager, compiled, and each as a CUDA graph."""
    eager, fused = static_twin(dynamic), compiled_static(dynamic, bench)

    def on_device(model: Backbone) -> Call:
        return lambda x, timestep, y: model(x, times(y, timestep), y)

    forms = {"static": on_device(eager), "static, compiled": on_device(fused)}
    if bench.graphs:
        forms |= {"static, graph": graph_of(eager, bench.device), "static, compiled, graph": graph_of(fused, bench.device)}
    return forms


def from_cpu(model: Callable[..., Tensor]) -> Call:
    """`model` with t on the cpu, as a sampler gives it."""
    return lambda x, timestep, y: model(x, times(y, timestep, "cpu"), y)


def milliseconds(
    forms: dict[str, Call], x: Tensor, y: Tensor, timesteps: Sequence[float], repeats: int
) -> dict[str, list[float]]:
    """Of a step of each form, one figure a repeat, the forms taking turns. Each runs `WARM` times before."""

    def run(form: Call) -> float:
        synchronize(x.device)
        start = time.perf_counter()
        for timestep in timesteps:
            form(x, timestep, y)
        synchronize(x.device)
        return 1000 * (time.perf_counter() - start) / len(timesteps)

    for form in forms.values():
        for _ in range(WARM):
            run(form)
    found: dict[str, list[float]] = {name: [] for name in forms}
    order = list(forms)
    for repeat in range(repeats):
        shift = repeat % len(order)
        for name in order[shift:] + order[:shift]:
            found[name].append(run(forms[name]))
    return found


def is_static(form: str) -> bool:
    """Whether a form's name is one of the static model's."""
    return form.startswith("static")


@torch.no_grad()
def sampling_rows(bench: Bench, name: str, ratio: float, first: bool) -> Iterator[dict[str, Any]]:
    """A row for each batch of one model, and with a cache for the largest of them."""
    sizes, config = bench.sizes, bench.config(name)
    timesteps = run_timesteps(config, sizes.measured)
    if not bench.budget.allows(f"{name}, ratio {ratio:g}", sizes.compile_seconds if first else 5):
        return
    dynamic = random_dydit(config, ratio, timesteps, device=bench.device).to(bench.device, sizes.dtype)
    static = static_forms(dynamic, bench)
    forms = sparse_forms(dynamic, bench)
    plan = {}
    for kind, form in forms.items():
        synchronize(bench.device)
        start = time.perf_counter()
        form.plan(timesteps)
        synchronize(bench.device)
        plan[kind] = 1000 * (time.perf_counter() - start)
    calls = {**static, **{kind: from_cpu(form) for kind, form in forms.items()}}
    for images in sizes.batches:
        x, y = inputs(config, images, bench.device, sizes.dtype)
        step = milliseconds({"static": static["static"]}, x, y, timesteps[:2], 1)["static"][0]
        repeats = sizes.repeats if step < LONG else max(2, sizes.repeats // 2)
        runs = len(calls) * len(timesteps) * (WARM + repeats)
        seconds = step * runs / 1000 + (sizes.compile_seconds if first else sizes.compile_seconds / 4)
        label = f"{name}, {images} images, ratio {ratio:g}"
        if not bench.budget.allows(label, seconds):
            continue
        found = milliseconds(calls, x, y, timesteps, repeats)
        for kind, own in plan.items():  # of a whole run, once
            found[kind] = [value + own / STEPS for value in found[kind]]
        macs = [total_macs(forms["sparse"](x, times(y, t), y, return_routing=True)[1], config) for t in timesteps]
        reached = torch.stack(macs).double().mean().item() / static_macs(config)
        padded = cast(PaddedModel, forms["padded"])
        room = [padded.capacities(t, len(x)) for t in timesteps]
        yield {
            "kind": "sampling",
            **row(name, images, ratio, reached, found),
            "plan_ms": plan,
            "tokens_share": share_of(padded, timesteps, len(x)),
            "capacity_share": statistics.mean(c for own in room for c in own) / config.num_tokens,
            "graphs": {
                kind: {"kept": len(form.graphs), "evicted": form.graphs.evicted, "bytes": form.graphs.bytes}
                for kind, form in forms.items()
                if isinstance(form, PaddedModel) and form.graphs is not None
            },
            "peak_bytes": torch.cuda.max_memory_allocated(bench.device) if bench.graphs else None,
        }
        first = False
    images = max(sizes.batches)
    if ratio == sizes.ratios[0] and bench.budget.allows(f"{name}, {images} images, cache {CACHE}", 10):
        yield {"kind": "cached", "cache": CACHE, **cached_row(bench, name, ratio, dynamic, images)}


def share_of(padded: PaddedModel, timesteps: Sequence[float], batch: int) -> float:
    """The share of the tokens that was on at most."""
    counts = [count for t in timesteps for count in padded.counts[t, batch]]
    return statistics.mean(counts) / (batch * padded.config.num_tokens)


def cached_row(bench: Bench, name: str, ratio: float, dynamic: DynamicBackbone, images: int) -> dict[str, Any]:
    """Static, sparse and padded execution with a cache between steps."""
    config, sizes = bench.config(name), bench.sizes
    timesteps = run_timesteps(config, sizes.measured)
    cache = CacheOptions(CACHE)
    forms = sparse_forms(dynamic, bench)
    fastest = "padded, compiled, graph" if bench.graphs else "padded"
    models = {
        "static, compiled": CachedModel(compiled_static(dynamic, bench), cache),
        "sparse": CachedModel(forms["sparse"], cache),
        fastest: CachedModel(forms[fastest], cache),
    }
    for model in models.values():
        model.plan(timesteps)
    x, y = inputs(config, images, bench.device, sizes.dtype)
    found = milliseconds({kind: from_cpu(model) for kind, model in models.items()}, x, y, timesteps, sizes.repeats)
    macs = {
        kind: sum(
            total_macs(model(x, times(y, t), y, return_routing=True)[1], config).double().mean().item() for t in timesteps
        )
        for kind, model in models.items()
    }
    return row(name, images, ratio, macs["sparse"] / macs["static, compiled"], found)


def row(name: str, images: int, ratio: float, reached: float, found: dict[str, list[float]]) -> dict[str, Any]:
    """Milliseconds of a step as median and quartiles, and the realised efficiency of every form over the fastest static one."""
    spreads = {kind: Spread.of(values) for kind, values in found.items()}
    static = min(spread.median for kind, spread in spreads.items() if is_static(kind))
    return {
        "model": name,
        "images": images,
        "ratio": ratio,
        "flops_ratio": reached,
        "ms_per_step": {kind: asdict(spread) for kind, spread in spreads.items()},
        "efficiency": {kind: static / spread.median * reached for kind, spread in spreads.items() if not is_static(kind)},
    }


def training_rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """Optimiser steps a second of a DyDiT and of its static model, with the recipe of ImageNet, in bf16 under autocast."""
    for name, batch in bench.sizes.training:
        if not bench.budget.allows(f"training {name}", 15):
            continue
        config = bench.config(name)
        dynamic = random_dydit(config, 0.5, run_timesteps(config, bench.sizes.measured), device=bench.device)
        generator = torch.Generator().manual_seed(0)
        x0, noise = (torch.randn(batch, *config.sample_shape, generator=generator) for _ in range(2))
        t = process_of(config).draw(batch, 4, generator)
        y = torch.randint(0, config.num_classes, (batch,), generator=generator)
        recipe = with_settings(
            read_recipe("imagenet/S-2-0.5"), {"train.batch_size": batch, "train.precision": "bf16", "train.grad_limit": None}
        )
        found = {}
        for kind, model in (("static", static_twin(dynamic).requires_grad_()), ("dydit", dynamic)):
            routed: dict[str, Any] = {
                "gates": GateNoise.draw(dynamic.config, batch, generator),
                "ratios": torch.tensor([0.5]),
                "group": torch.zeros(batch, dtype=torch.long),
            }
            trainer = Trainer(model, recipe, Distributed())
            data = Batch(x0, t, y, noise, **(routed if kind == "dydit" else {}))
            for step in range(3):
                trainer.step(data, step)
            synchronize(bench.device)
            start = time.perf_counter()
            for step in range(bench.sizes.measured):
                trainer.step(data, step + 3)
            synchronize(bench.device)
            found[kind] = bench.sizes.measured / (time.perf_counter() - start)
        yield {"kind": "training", "model": name, "batch": batch, "steps_per_second": found}


# what is written


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    rows = result["rows"]
    right = [one["right"] for one in result["parity"]]
    lines = [
        f"{result['device']}, torch {result['torch']}, {result['dtype']}, guidance (twice the images at once), milliseconds of "
        f"a step, median of {result['repeats']} times {result['measured']} of {STEPS} steps; the static model is compiled "
        f"{'as a whole' if result['whole'] else 'block by block'}.",
        "",
        f"Parity with masked execution on the cpu, float64: {sum(right)} of {len(right)} executions of "
        f"{len({one['family'] for one in result['parity']})} families, largest difference "
        f"{max(one['difference'] for one in result['parity']):.1e} of the largest output.",
    ]
    for kind in ("sampling", "cached"):
        own = [one for one in rows if one["kind"] == kind]
        if own:
            lines += ["", *table_of(own, f"with a cache ({CACHE})" if kind == "cached" else "without a cache")]
    training = [one for one in rows if one["kind"] == "training"]
    if training:
        lines += ["", "| training | batch | static [steps/s] | DyDiT [steps/s] |", "|---|---|---|---|"]
        for one in training:
            speed = one["steps_per_second"]
            lines.append(f"| {one['model']} | {one['batch']} | {speed['static']:.2f} | {speed['dydit']:.2f} |")
    for what in result["left_out"]:
        lines += ["", f"Left out: {what}."]
    return "\n".join(lines) + "\n"


def table_of(rows: list[dict[str, Any]], what: str) -> list[str]:
    """One table; its last column is the best realised efficiency over the fastest static form."""
    forms = list(dict.fromkeys(form for one in rows for form in one["ms_per_step"]))
    heads = [what, "images", "FLOPs ratio", *(f"{form} [ms]" for form in forms), "efficiency"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in rows:
        cells = [f"{one['ms_per_step'][form]['median']:.2f}" if form in one["ms_per_step"] else "" for form in forms]
        best = max(one["efficiency"], key=one["efficiency"].get)
        lines.append(
            f"| {one['model']} | {one['images']} | {one['flops_ratio']:.3f} | {' | '.join(cells)} "
            f"| **{one['efficiency'][best]:.3f}** ({best}) |"
        )
    return lines


def run(bench: Bench, out: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """All of it, written to `out` after every row."""
    sizes = bench.sizes
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "device": describe_device(bench.device),
        "torch": torch.__version__,
        "dtype": str(sizes.dtype).removeprefix("torch."),
        "measured": sizes.measured,
        "repeats": sizes.repeats,
        "whole": bench.whole,
        "command": " ".join(["python", *sys.argv]),
        "parity": [],
        "rows": rows,
        "left_out": bench.budget.left_out,
    }

    def keep() -> None:
        result["seconds"] = bench.budget.seconds - bench.budget.left
        if out is not None:
            write_json(out, result)

    if bench.graphs and not bench.triton:
        bench.budget.left_out.append("Triton's kernels: Triton is not installed")
    if not bench.graphs:
        bench.budget.left_out.append(f"CUDA graphs and Triton's kernels: the device is {bench.device.type}")
    result["parity"] = parity(bench)
    wrong = [one for one in result["parity"] if not one["right"]]
    say(f"parity: {len(result['parity']) - len(wrong)} of {len(result['parity'])} right")
    for one in wrong:
        say(f"WRONG: {one['family']}, {one['execution']}: {one['difference']:.1e}")
    keep()
    # the middle ratio of every model first, then training, then the rest
    for number, ratio in enumerate(sizes.ratios):
        parts = [sampling_rows(bench, name, ratio, first=number == 0) for name in sizes.models]
        for one in chain(*parts, training_rows(bench) if number == 0 else ()):
            rows.append(one)
            say(", ".join(f"{key} {value}" for key, value in summary(one).items()))
            keep()
    return result


def summary(one: dict[str, Any]) -> dict[str, str]:
    """A row in a few words."""
    if one["kind"] == "training":
        return {one["kind"]: one["model"], **{kind: f"{speed:.2f} steps/s" for kind, speed in one["steps_per_second"].items()}}
    best = max(one["efficiency"], key=one["efficiency"].get)
    return {
        one["kind"]: f"{one['model']} x {one['images']}",
        "ratio": f"{one['flops_ratio']:.3f}",
        **{form: f"{spread['median']:.2f} ms" for form, spread in one["ms_per_step"].items()},
        "efficiency": f"{one['efficiency'][best]:.3f}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the result as JSON, written after every row")
    parser.add_argument("--table", type=Path, help="the result as Markdown")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--budget", type=float, default=510.0, help="seconds in all")
    parser.add_argument("--tiny", action="store_true", help="small models, for a machine without a GPU")
    parser.add_argument("--whole", action="store_true", help="compile the static model as one, not block by block")
    options = parser.parse_args(arguments)
    device = pick_device(options.device)
    if device.type == "cpu" and not options.tiny:
        parser.error("no GPU here, and these sizes are for one; add --tiny to see that all of it runs")
    result = run(
        Bench(device, TINY if options.tiny else Sizes(), Budget(options.budget), options.whole),
        options.out,
        lambda text: print(text, flush=True),
    )
    text = table(result)
    print(f"\n{text}")
    if options.table is not None:
        write_text(options.table, text)
    return 0 if all(one["right"] for one in result["parity"]) else 1


if __name__ == "__main__":
    sys.exit(main())
