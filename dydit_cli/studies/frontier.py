"""`dydit frontier`: which mix of FLOPs ratio, steps, sampler and cache stays nearest to the complete model for its cost.

Every mix samples the same images, from the same noise, as a reference does: a static model with many steps, or where there is
none the first model with everything on. Mixes run in rising cost. Each draws a quarter of the images first, and is dropped
where on these another one was `NEARER` times nearer for `CHEAPER` of its MACs, a distance from the front over MACs that its
seconds would hardly make up for. A finished mix is a file, and is never run again.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dydit_cli import marks
from dydit_cli.artifacts.base import read_object
from dydit_cli.artifacts.frontier import Frontier, MeasuredMix, Mix
from dydit_cli.artifacts.profile import timestep_table
from dydit_cli.bundled import WEIGHTS
from dydit_cli.checkpoint.budgets import at_ratio
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.lineage import asked_ratio
from dydit_cli.checkpoint.native import CONFIG_FILE
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import CheckpointLike, read
from dydit_cli.devices import pick_device
from dydit_cli.diffusion.generate import Progress, cycle_labels
from dydit_cli.diffusion.options import ReadySettings, SamplerSettings
from dydit_cli.errors import DyditError, naming
from dydit_cli.files import Resumable, atomic_file, check_output, claim, sha256, write_json
from dydit_cli.model.caching import CacheOptions
from dydit_cli.model.config import ModelConfig, RoutedConfig
from dydit_cli.model.execution import executor
from dydit_cli.model.macs import static_macs
from dydit_cli.profiling.profile import names_of
from dydit_cli.profiling.record import Recorder
from dydit_cli.provenance import made_by
from dydit_cli.sampling.sampler import run_sampler
from dydit_cli.studies.folder import CLAIMS, TABLES, TIMES, TIMING
from dydit_cli.studies.frontier_options import FrontierOptions
from dydit_cli.train.run_folder import fingerprint
from dydit_cli.version import __version__

QUARTER, CHEAPER, NEARER = 4, 0.8, 1.5

RATIOS = 4  # of a range, where none are named

REPEATS, WARM_IMAGES = 3, 2  # of the runs that take a time

MIXES, REFERENCE = "mixes", "reference.npz"

FREE = {"flops_ratios", "steps", "samplers", "caches"}  # with others, mixes are added or left out

OnStage = Callable[[str, int, str, int], None]  # what, how many, of which unit, and how much progress makes one


@dataclass(frozen=True)
class Candidate:
    """A mix, and what it needs; `share` is about what it takes of the static model's MACs in as many calls."""

    mix: Mix
    source: Checkpoint
    settings: ReadySettings
    asked: SamplerSettings
    cache: CacheOptions
    share: float

    @property
    def calls(self) -> float:
        """Its cost in forwards of the static model, roughly."""
        return self.settings.work * self.share

    @cached_property
    def checkpoint(self) -> Checkpoint:
        ratio = self.mix.flops_ratio
        return self.source if ratio is None else at_ratio(self.source, ratio)


def candidates(named: Mapping[str, Checkpoint], options: FrontierOptions) -> list[Candidate]:
    """All mixes by rising cost. A cache that forecasts nothing in so few steps is the mix without it, and left out.

    Raises `DyditError` for a ratio out of a range, a number of steps or a sampler that cannot be, and a cache that fits none.
    """
    found: list[Candidate] = []
    unfit: dict[str, str] = {}
    for name, checkpoint in named.items():
        for ratio, share in ratios_of(checkpoint, options.flops_ratios):
            for sampler in options.samplers or (None,):
                for steps in options.steps:
                    asked = replace(options.settings, sampler=sampler, steps=steps)
                    ready = asked.for_model(checkpoint.config)
                    for cache in options.caches:
                        try:
                            schedule = (cached := CacheOptions.parse(cache)).schedule(ready.timesteps, ready.sampler)
                        except DyditError as error:
                            unfit[cache] = str(error)
                            continue
                        computed = 1.0 if schedule is None else sum(schedule.computed) / len(schedule.computed)
                        if schedule is None or computed < 1:
                            mix = Mix(name, ratio, ready.sampler, steps, cache)
                            found.append(Candidate(mix, checkpoint, ready, asked, cached, share * computed))
    for cache in options.caches:
        if cache not in {one.mix.cache for one in found}:
            raise DyditError(unfit.get(cache, f"cache {cache}: computes all of so few steps; give more steps, or leave it out"))
    return sorted(found, key=lambda one: one.calls)


def ratios_of(checkpoint: Checkpoint, asked: Sequence[float] | None) -> list[tuple[float | None, float]]:
    """The ratios that a checkpoint is set to, None for one that stays as it is, each with its share of attention and MLP."""
    config = checkpoint.config
    if not isinstance(config, RoutedConfig):
        return [(None, 1.0)]
    if not config.budgets or (config.allocation and asked is None):
        return [(None, asked_ratio(checkpoint.lineage) or 1.0)]
    low, high = config.budgets[0], config.budgets[-1]
    with naming(checkpoint.path):
        ratios = asked or [round(ratio, 3) for ratio in torch.linspace(low, high, RATIOS, dtype=torch.float64).tolist()]
        for ratio in ratios:
            config.setting_for(ratio)
    return [(ratio, ratio) for ratio in ratios]


def static_config(checkpoint: Checkpoint) -> ModelConfig:
    """Of the model without routers."""
    config = checkpoint.config
    return config.static() if isinstance(config, RoutedConfig) else config


def read_alike(checkpoints: Sequence[CheckpointLike], reading: LoadOptions) -> dict[str, Checkpoint]:
    """By short names. Raises `DyditError` for models whose samples cannot be compared."""
    loaded = [read(checkpoint, reading) for checkpoint in checkpoints]
    if not loaded:
        raise DyditError("no checkpoint; name one or more")
    first = loaded[0]
    for other in loaded[1:]:
        if static_config(other) != static_config(first) or other.latents != first.latents:
            raise DyditError(f"{other.path}: is of another configuration than {first.path}; a front is of one static model's")
    return dict(zip(names_of([str(one.path) for one in loaded]), loaded, strict=True))


def folders_to_store(named: Mapping[str, Checkpoint]) -> dict[str, Path]:
    """The checkpoints' own folders. Bundled ones belong to the package. Raises `DyditError` where there is no other."""
    files = {name: one.file for name, one in named.items() if one.file is not None and one.found == "dydit folder"}
    found = {name: file.parent for name, file in files.items() if not file.resolve().is_relative_to(WEIGHTS.resolve())}
    if not found:
        raise DyditError(
            f"--store: {', '.join(named)} cannot hold a front; name a checkpoint's folder that dydit wrote for you"
        )
    return found


@dataclass(frozen=True)
class FrontierFolder:
    """The folder `path`, which several processes may fill side by side."""

    path: Path

    def open(self, settings: Mapping[str, Any], force: bool) -> None:
        """Begins, or goes on with what is there. Raises `DyditError` where that has other settings, but for `FREE`."""
        resumable = Resumable(self.path, marks.RECIPE, Frontier.format, "a front")
        values = {"format": Frontier.format, **settings}
        if force:
            check_output(self.path, force=True)
        else:
            resumable.check(values, FREE)
        resumable.begin({**values, **made_by()}, force)

    def claim(self, name: str, wait: bool = False) -> AbstractContextManager[bool]:
        """Whether `name` is this process's for the length of the block."""
        return claim(self.path / CLAIMS / name, wait)

    def done(self, mix: Mix) -> bool:
        return (self.path / MIXES / mix.file_name).is_file()

    def read(self, mix: Mix) -> tuple[MeasuredMix, float]:
        """What was measured, its seconds included where they are known, and the distance on the first images."""
        values = self._values(self.path / MIXES / mix.file_name)
        first = float(values.pop("first_distance"))
        times = self.path / TIMES / mix.file_name
        seconds = self._values(times)["seconds_per_image"] if times.is_file() else None
        return MeasuredMix(**{**values, "seconds_per_image": seconds}), first

    def write(self, mix: MeasuredMix, first_distance: float) -> None:
        write_json(self.path / MIXES / mix.file_name, {**asdict(mix), "first_distance": first_distance})

    def write_time(self, mix: Mix, seconds: float) -> None:
        write_json(self.path / TIMES / mix.file_name, {"seconds_per_image": seconds, "threads": torch.get_num_threads()})

    def timed(self, mix: Mix) -> bool:
        return (self.path / TIMES / mix.file_name).is_file()

    @staticmethod
    def _values(file: Path) -> dict[str, Any]:
        try:
            return read_object(file)
        except (OSError, ValueError) as error:
            raise DyditError(f"{file}: cannot be read ({error}); remove it, and the same command makes it anew") from None


@dataclass(frozen=True)
class Runner:
    """What mixes are measured against, where, and what follows the progress. `reference` is M C S S, `static` the MACs of an
    image of the static model with the reference's steps."""

    folder: FrontierFolder
    options: FrontierOptions
    device: torch.device
    reference: Tensor
    static: float
    mixes: list[Mix]
    on_work: Callable[[int, str], None]

    def run(self, todo: list[Candidate]) -> None:
        """Goes over the mixes again while there was one to measure, for those that another process left."""
        ran = True
        while ran:
            ran = False
            for one in list(todo):
                with self.folder.claim(one.mix.file_name) as mine:
                    if not mine:
                        continue
                    todo.remove(one)
                    if self.folder.done(one.mix):
                        self.on_work(self.options.images * one.settings.work, one.mix.label)
                    else:
                        self.folder.write(*self.measure(one))
                        ran = True

    def measure(self, one: Candidate) -> tuple[MeasuredMix, float]:
        """The mix's figures, and its distance on the first quarter of the images."""
        options, config = self.options, one.checkpoint.config
        images, quarter = options.images, options.images // QUARTER
        labels = cycle_labels(list(config.class_numbers), images)
        halves = 1 if one.settings.cfg == 1 else 2
        model = executor(one.checkpoint.build().to(self.device).float(), "sparse", cache=one.cache)
        recorder, worked = Recorder(model, halves, keep=1), 0

        def report(progress: Progress) -> None:
            nonlocal worked
            worked += progress.work
            self.on_work(progress.work, one.mix.label)

        def distances(first: int, last: int) -> Tensor:
            samples = recorder.sample(
                labels[first:last], one.asked, seed=options.seed, first=first, batch=options.batch, on_progress=report
            )
            return (samples.double() - self.reference[first:last]).square().flatten(1).mean(1)

        def macs() -> float:
            table = timestep_table(recorder.record(), config)
            return float(table["dynamic_macs"].mean()) * len(table) * halves

        parts = [distances(0, quarter)] if quarter else []
        dropped = bool(parts) and self.dominated(macs(), parts[0].mean().item())
        if dropped:
            self.on_work(images * one.settings.work - worked, one.mix.label)
        else:
            parts.append(distances(quarter, images))
        found, cost = torch.cat(parts), macs()
        error = found.std().item() / math.sqrt(len(found)) if len(found) > 1 else None
        mix = MeasuredMix(
            **asdict(one.mix),
            macs_per_image=cost,
            cost=cost / self.static,
            distance=found.mean().item(),
            distance_error=error,
            images=len(found),
            dropped=dropped,
        )
        return mix, found[: quarter or images].mean().item()

    def dominated(self, macs: float, distance: float) -> bool:
        """Whether a finished mix is clearly nearer for clearly fewer MACs, on the first images."""
        finished = (self.folder.read(mix) for mix in self.mixes if self.folder.done(mix))
        return any(mix.macs_per_image <= CHEAPER * macs and NEARER * first <= distance for mix, first in finished)

    def take_times(self, todo: Sequence[Candidate]) -> None:
        """The median of several runs of a batch each, planning included, all mixes in turn, so that what else the machine does
        falls on all; in one process alone: two would disturb each other."""
        count = min(self.options.images, self.options.batch)
        seconds: dict[Mix, list[float]] = {one.mix: [] for one in todo}
        for images in (min(WARM_IMAGES, count), *[count] * REPEATS):
            for one in todo:
                labels = cycle_labels(list(one.checkpoint.config.class_numbers), images)
                model = executor(one.checkpoint.build().to(self.device).float(), "sparse", cache=one.cache)
                start = time.perf_counter()
                run_sampler(model, labels, one.asked, 0, self.options.batch, self.options.seed, None)
                seconds[one.mix].append((time.perf_counter() - start) / images)
                self.on_work(1, one.mix.label)
        for mix, (_, *runs) in seconds.items():
            self.folder.write_time(mix, statistics.median(runs))


@dataclass(frozen=True)
class FrontierResult:
    """`left` counts mixes that are not measured, which other processes are at; `stored` are the folders that got a front."""

    frontier: Frontier
    left: int
    stored: list[Path]


def frontier(
    checkpoints: Sequence[CheckpointLike],
    out: str | Path,
    options: FrontierOptions = FrontierOptions(),
    *,
    time: bool = True,
    store: bool = False,
    reading: LoadOptions = LoadOptions(),
    device: str = "auto",
    force: bool = False,
    on_stage: OnStage = lambda *what: None,
    on_work: Callable[[int, str], None] = lambda amount, note: None,
) -> FrontierResult:
    """Measures every mix into the folder `out`, or goes on with what is in it; `time` takes seconds when all are measured, and
    `store` writes each checkpoint's own front into its folder then.

    Several processes may be given the same at once. Raises `DyditError` for checkpoints of different configurations, mixes
    that cannot be, a folder with something else in it (without `force`), and with `store` where no checkpoint can hold one.
    """
    named = read_alike(checkpoints, reading)
    folders = folders_to_store(named) if store else {}
    if options.flops_ratios and not any(getattr(one.config, "budgets", ()) for one in named.values()):
        raise DyditError(f"--flops-ratio: none of {', '.join(named)} is a DyDiT of a range; leave it out")
    every, place = candidates(named, options), pick_device(device)
    name, source = next(((name, one) for name, one in named.items() if not one.config.dynamic), next(iter(named.items())))
    asked = replace(options.settings, steps=options.reference_steps)
    ready = asked.for_model(source.config)
    static = static_macs(source.config) * ready.work * (1 if ready.cfg == 1 else 2)
    folder = FrontierFolder(Path(out))
    plain = asdict(options)
    folder.open({**plain, "checkpoints": {name: fingerprint(one) for name, one in named.items()}}, force)

    def sample_reference() -> Tensor:
        file = folder.path / REFERENCE
        with folder.claim(REFERENCE, wait=True):
            if not file.is_file():
                on_stage("reference", options.images, "images", ready.work)
                labels = cycle_labels(list(source.config.class_numbers), options.images)
                model = executor(source.build().to(place).float(), "complete")

                def report(progress: Progress) -> None:
                    on_work(progress.work, name)

                samples = run_sampler(model, labels, asked, 0, options.batch, options.seed, report)
                with atomic_file(file) as temporary:
                    np.savez_compressed(temporary, samples=samples.numpy())
            with np.load(file, allow_pickle=False) as arrays:
                return torch.from_numpy(arrays["samples"]).double()

    runner = Runner(folder, options, place, sample_reference(), static, [one.mix for one in every], on_work)
    todo = [one for one in every if not folder.done(one.mix)]
    if todo:
        on_stage("measure", sum(options.images * one.settings.work for one in todo), "image-steps", 1)
    runner.run(todo)
    left = sum(not folder.done(one.mix) for one in every)
    if time and not left:
        with folder.claim(TIMING) as mine:
            untimed = [one for one in every if not folder.timed(one.mix) and not folder.read(one.mix)[0].dropped]
            if mine and untimed:
                on_stage("time", len(untimed), "mixes", 1 + REPEATS)
                runner.take_times(untimed)
    about = {
        **made_by(),
        "checkpoints": {name: str(one.path) for name, one in named.items()},
        "model": source.config.size_name,
        "reference": {"checkpoint": name, "sampler": ready.sampler, "steps": ready.steps, "macs_per_image": static},
        "settings": {
            field.name: value for field in fields(asked) if (value := getattr(options.settings, field.name)) is not None
        },
        "images": options.images,
        "seed": options.seed,
        "device": place.type,
        "threads": torch.get_num_threads(),
        "left": left,
        "versions": {"dydit": __version__, "torch": torch.__version__},
    }
    with folder.claim(TABLES, wait=True):
        result = Frontier(about, [folder.read(one.mix)[0] for one in every if folder.done(one.mix)])
        result.write(folder.path)
    if not left:
        for one, path in folders.items():
            result.of(one, checkpoint_sha256=sha256(named[one].file or path / CONFIG_FILE)).store(path)
    return FrontierResult(result, left, [] if left else list(folders.values()))
