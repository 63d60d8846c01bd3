"""`dydit frontier`: which mix of FLOPs ratio, steps, sampler and cache stays nearest to the complete model for its cost.

Every mix samples the same images, from the same noise, as a reference does: a static model with many steps, or where there is
none the first model with everything on. Mixes run in rising cost. Each draws a quarter of the images first, and is dropped
where on these another one was `NEARER` times nearer for `CHEAPER` of its MACs and no more model calls, a distance from the
front that neither MACs nor seconds would make up for. A finished mix is a file, and is never run again.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dydit_cli.artifacts.frontier import Frontier, MeasuredMix, Mix
from dydit_cli.artifacts.profile import timestep_table
from dydit_cli.bundled import WEIGHTS
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import CONFIG_FILE
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import CheckpointLike
from dydit_cli.devices import pick_device
from dydit_cli.diffusion.generate import Progress, cycle_labels
from dydit_cli.errors import DyditError
from dydit_cli.files import atomic_file, sha256
from dydit_cli.model.execution import executor
from dydit_cli.model.macs import static_macs
from dydit_cli.profiling.record import Recorder
from dydit_cli.provenance import made_by
from dydit_cli.sampling.sampler import run_sampler
from dydit_cli.studies.folder import TABLES, TIMING
from dydit_cli.studies.frontier_folder import FrontierFolder
from dydit_cli.studies.frontier_judges import Judging
from dydit_cli.studies.frontier_options import FrontierOptions
from dydit_cli.studies.mixes import Candidate, candidates, read_alike
from dydit_cli.studies.progress import OnStage
from dydit_cli.train.run_folder import fingerprint
from dydit_cli.version import __version__

QUARTER, CHEAPER, NEARER = 4, 0.8, 1.5

REPEATS, WARM_IMAGES = 3, 2  # of the runs that take a time

REFERENCE = "reference.npz"


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
class Runner:
    """What mixes are measured against, where, and what follows the progress. `reference` is M C S S, `static` the MACs of an
    image of the static model with the reference's steps."""

    folder: FrontierFolder
    options: FrontierOptions
    device: torch.device
    reference: Tensor
    static: float
    every: list[Candidate]
    on_work: Callable[[int, str], None]

    def run(self, todo: list[Candidate], wait: bool = False) -> None:
        """Measures mixes, as `FrontierFolder.share`."""

        def measure(one: Candidate) -> None:
            self.folder.write(*self.measure(one))

        def skip(one: Candidate) -> None:
            self.on_work(self.options.images * one.settings.work, one.mix.label)

        self.folder.share(todo, "", self.done, measure, skip, wait)

    def done(self, one: Candidate) -> bool:
        """Whether it is measured: on all images, or on the first ones and no mix that is asked for now says otherwise."""
        if not self.folder.done(one.mix):
            return False
        mix, first = self.folder.read(one.mix)
        return not mix.dropped or self.dominated(one, mix.macs_per_image, first)

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
        dropped = bool(parts) and self.dominated(one, macs(), parts[0].mean().item())
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

    def dominated(self, one: Candidate, macs: float, distance: float) -> bool:
        """Whether a finished mix is clearly nearer for clearly fewer MACs and no more model calls, on the first images; where
        judges follow, one of the same checkpoint: the distance to one model's samples says less of another's."""
        rivals = (
            self.folder.read(other.mix)
            for other in self.every
            if other.calls <= one.calls
            and (not self.options.features or other.mix.checkpoint == one.mix.checkpoint)
            and self.folder.done(other.mix)
        )
        return any(mix.macs_per_image <= CHEAPER * macs and NEARER * first <= distance for mix, first in rivals)

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

    With `options.features` judges then see what is near a checkpoint's front. Several processes may be given the same at once.
    Raises `DyditError` for checkpoints of different configurations, mixes
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
    judging = Judging.open(folder, options, device, every, on_work) if options.features else None
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

    runner = Runner(folder, options, place, sample_reference(), static, every, on_work)
    todo = [one for one in every if not runner.done(one)]
    if todo:
        on_stage("measure", sum(options.images * one.settings.work for one in todo), "image-steps", 1)
    runner.run(todo)
    if judging is not None:  # which mixes are near a front is known when all are measured
        runner.run(todo, wait=True)
    left = sum(not runner.done(one) for one in every)
    if time and not left:
        with folder.claim(TIMING, wait=judging is not None) as mine:
            untimed = [one for one in every if not folder.timed(one.mix) and not folder.read(one.mix)[0].dropped]
            if mine and untimed:
                on_stage("time", len(untimed), "mixes", 1 + REPEATS)
                runner.take_times(untimed)
    measured = [folder.read(one.mix)[0] for one in every if runner.done(one)]
    if judging is not None:
        chosen = judging.chosen(every, measured)
        left += judging.run(chosen, on_stage)
        measured = [replace(mix, judged=judging.figures(mix)) for mix in measured]
    about = {
        **made_by(),
        "checkpoints": {name: str(one.path) for name, one in named.items()},
        "model": source.config.size_name,
        "reference": {"checkpoint": name, "sampler": ready.sampler, "steps": ready.steps, "macs_per_image": static},
        "settings": {
            field.name: value for field in fields(asked) if (value := getattr(options.settings, field.name)) is not None
        },
        "images": options.images,
        **({} if judging is None else {"judges": judging.facts()}),
        "seed": options.seed,
        "device": place.type,
        "threads": torch.get_num_threads(),
        "left": left,
        "versions": {"dydit": __version__, "torch": torch.__version__},
    }
    with folder.claim(TABLES, wait=True):
        result = Frontier(about, measured)
        result.write(folder.path)
    if not left:
        for one, path in folders.items():
            result.of(one, checkpoint_sha256=sha256(named[one].file or path / CONFIG_FILE)).store(path)
    return FrontierResult(result, left, [] if left else list(folders.values()))
