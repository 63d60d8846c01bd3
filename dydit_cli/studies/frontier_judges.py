"""What judges say of the mixes near a front. A mix's samples are drawn once, in files that survive a kill, for all judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dydit_cli.artifacts.frontier import OVERS, MeasuredMix, Mix, within
from dydit_cli.diffusion.generate import cycle_labels
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.evaluate import evaluate
from dydit_cli.evaluate.images import ArrayImages, check_images
from dydit_cli.files import atomic_file
from dydit_cli.sampling.options import SamplingConfig
from dydit_cli.sampling.sampler import open_sampler, record_of
from dydit_cli.studies.frontier_folder import FrontierFolder
from dydit_cli.studies.frontier_options import FrontierOptions
from dydit_cli.studies.measure import OpenJudge, judge_facts, open_judges, shared_figures
from dydit_cli.studies.mixes import Candidate
from dydit_cli.studies.progress import OnStage

STAGE = "judge-"  # before a mix's name, a claim of this work


@dataclass(frozen=True)
class Judging:
    """The judges, what they compare with, and where their words and the samples are."""

    folder: FrontierFolder
    options: FrontierOptions
    device: str
    judges: tuple[OpenJudge, ...]
    on_work: Callable[[int, str], None]

    @classmethod
    def open(
        cls,
        folder: FrontierFolder,
        options: FrontierOptions,
        device: str,
        every: Sequence[Candidate],
        on_work: Callable[[int, str], None],
    ) -> Judging:
        """Raises `DyditError` for an unknown judge or reference, and samples that no judge can see."""
        judging = cls(folder, options, device, open_judges(options.features, options.reference, None, device), on_work)
        for one in {one.mix.checkpoint: one for one in every}.values():
            check_images(one.source.path, one.source.config.frames)
            judging.record(one)
        return judging

    def facts(self) -> dict[str, Any]:
        """Of the front's summary: by judge its network and reference, and how many samples it saw."""
        return {judge.name: {**judge_facts(judge), "images": self.options.num} for judge in self.judges}

    def sampling(self, one: Candidate) -> SamplingConfig:
        """How a mix is sampled."""
        options = self.options
        return SamplingConfig(
            one.asked, seed=options.seed, vae=options.vae, batch=options.batch, device=self.device, cache=one.cache
        )

    def record(self, one: Candidate) -> dict[str, Any]:
        """As `record_of`."""
        return record_of(one.checkpoint, self.sampling(one), self.options.num)

    def chosen(self, every: Sequence[Candidate], measured: Sequence[MeasuredMix]) -> list[Candidate]:
        """What is on its checkpoint's front over MACs or seconds, or near it, the most expensive first: so several processes
        end at about the same time."""
        near = {
            mix.file_name
            for checkpoint in {mix.checkpoint for mix in measured}
            for over in OVERS.values()
            for mix in within([mix for mix in measured if mix.checkpoint == checkpoint], over, times=self.options.near)
        }
        return [one for one in reversed(every) if one.mix.file_name in near]

    def run(self, chosen: Sequence[Candidate], on_stage: OnStage) -> int:
        """Judges these mixes, as `FrontierFolder.share`; returns how many are left to others."""
        todo = [one for one in chosen if not self.done(one)]
        if todo:
            on_stage("judge", sum(self.options.num * one.settings.work for one in todo), "image-steps", 1)

        def skip(one: Candidate) -> None:
            self.on_work(self.options.num * one.settings.work, one.mix.label)

        self.folder.share(todo, STAGE, self.done, self.judge, skip)
        return sum(not self.done(one) for one in chosen)

    def done(self, one: Candidate) -> bool:
        return len(self.figures(one.mix)) == len(self.judges)

    def figures(self, mix: Mix) -> dict[str, dict[str, float | None]]:
        """By judge what it said of so many samples against this reference."""
        found = {judge.name: self.folder.judgement(mix, judge.name) for judge in self.judges}
        about = {judge.name: self._about(judge) for judge in self.judges}
        return {
            name: values["figures"]
            for name, values in found.items()
            if values is not None and {key: values.get(key) for key in about[name]} == about[name]
        }

    def judge(self, one: Candidate) -> None:
        """Draws the samples that are missing, and asks those judges that have not seen them."""
        config = one.checkpoint.config
        labels = cycle_labels(list(config.class_numbers), self.options.num).numpy()
        images = ArrayImages(one.mix.label, self.pixels(one), labels, self.record(one))
        known = self.figures(one.mix)
        for judge in self.judges:
            if judge.name not in known:
                result = evaluate(
                    images, judge.reference, judge.extractor, batch=self.options.batch, device=self.device, deviation=True
                )
                figures = shared_figures(result)
                figures["frechet_sd"] = result.figures.get(f"{judge.extractor.figures[0]}_sd")
                self.folder.write_judgement(
                    one.mix, judge.name, {**self._about(judge), "figures": figures, "evaluation": result.to_dict()}
                )

    def pixels(self, one: Candidate) -> NDArray[np.uint8]:
        """M S S C, of the files that are there, and of new ones."""
        files, parts = self.folder.samples(one.mix, self.options.num), []
        report = partial(self._report, one.mix.label)
        sampler = None
        for shard in range(files.count):
            items, file = files.items(shard), files.path(shard)
            pixels = read_samples(file) if file.is_file() else None
            if pixels is None or len(pixels) < len(items):  # a smaller number's last one
                sampler = sampler or open_sampler(one.checkpoint, self.sampling(one))
                pixels = sampler.pixels(sampler.samples(items.start, len(items), report))
                with atomic_file(file) as temporary:
                    np.savez_compressed(temporary, samples=pixels)
            else:
                report(len(items) * one.settings.work)
            parts.append(pixels[: len(items)])
        return np.concatenate(parts)

    def _report(self, label: str, amount: int) -> None:
        self.on_work(amount, label)

    def _about(self, judge: OpenJudge) -> dict[str, Any]:
        return {"images": self.options.num, "reference": judge.reference.name}


def read_samples(file: Any) -> NDArray[np.uint8]:
    """M S S C. Raises `DyditError` for a damaged file."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays["samples"]
    except Exception as error:  # zipfile, zlib and numpy each have errors of their own
        raise DyditError(f"{file}: damaged ({str(error)[:80]}); remove it, and the same command makes it anew") from None
