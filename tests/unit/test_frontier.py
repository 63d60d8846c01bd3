"""The front of mixes: its candidates, what each is measured to be, what is dropped, resumed and shared, and what is stored."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dydit_cli.artifacts.frontier import Frontier, MeasuredMix, front_of, within
from dydit_cli.artifacts.samples import SampleFolder
from dydit_cli.checkpoint.budgets import at_ratio, with_range
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.diffusion.generate import cycle_labels
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.evaluate import evaluate, find_extractor
from dydit_cli.evaluate.features import DISTANCE_ONLY, Extractor, Features, Pixels
from dydit_cli.evaluate.images import GeneratedImages
from dydit_cli.evaluate.registry import FEATURES, Judge
from dydit_cli.model.caching import CacheOptions
from dydit_cli.model.execution import executor
from dydit_cli.model.families.dit import DiT, DyDiT, DyDiTConfig
from dydit_cli.profiling.profile import profile
from dydit_cli.sampling.fronts import best_within, stored_front, with_mix
from dydit_cli.sampling.images import sample_images
from dydit_cli.sampling.options import SamplingConfig
from dydit_cli.sampling.sampler import ImageSampler, open_sampler, run_sampler
from dydit_cli.studies import frontier as studies
from dydit_cli.studies import frontier_folder, frontier_judges
from dydit_cli.studies.frontier import FrontierResult, frontier
from dydit_cli.studies.frontier_folder import FrontierFolder
from dydit_cli.studies.frontier_options import FrontierOptions
from dydit_cli.studies.mixes import candidates
from tests.conftest import TINY, randomize

FEW = FrontierOptions(steps=(4, 2), caches=("none", "fora:2", "taylorseer:2:1@model"), reference_steps=6, images=8, batch=4)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static model, and as dynamic ones one of a single ratio and one of a range."""
    folder = tmp_path_factory.mktemp("models")
    write(Checkpoint.of(randomize(DiT(TINY), scale=0.05), []), folder / "static")
    dynamic = Checkpoint.of(randomize(DyDiT(DyDiTConfig.from_static(TINY, token_router_reduction=4)), scale=0.05), [])
    write(dynamic, folder / "dydit")
    write(with_range(dynamic, 0.3, 0.9), folder / "range")
    return folder


def run(models: Path, out: Path, *names: str, options: FrontierOptions = FEW, **more: Any) -> FrontierResult:
    paths = [str(models / name) for name in names or ("static", "range")]
    return frontier(paths, out, options, **{"device": "cpu", "time": False, **more})


@pytest.fixture(scope="module")
def done(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("front") / "out"
    assert run(models, out, time=True).left == 0
    return out


def a_mix(cost: float, distance: float, **values: Any) -> MeasuredMix:
    facts = {"checkpoint": "a", "flops_ratio": None, "sampler": "ddim", "steps": 10, "cache": "none", **values}
    return MeasuredMix(
        **{"macs_per_image": 1e9 * cost, "distance_error": None, "images": 4, **facts}, cost=cost, distance=distance
    )


def by(distance: float) -> dict[str, dict[str, float | None]]:
    return {"digits": {"frechet": distance, "frechet_sd": 0.1, "precision": 0.9, "recall": 0.8}}


def a_front(folder: Path) -> Path:
    """A folder as `dydit frontier` leaves it: the reference itself, mixes on the front and over it, one dropped; a judge saw
    those on the front."""
    mixes = [
        a_mix(1.0, 0.0, steps=50, seconds_per_image=2.0, judged=by(4.0)),
        a_mix(0.5, 0.02, flops_ratio=0.5, checkpoint="b", seconds_per_image=1.1, judged=by(3.0)),
        a_mix(0.4, 0.03, steps=20, seconds_per_image=0.9, judged=by(6.0)),
        a_mix(0.2, 0.2, cache="fora:3", seconds_per_image=0.4, judged=by(9.0)),
        a_mix(0.3, 0.4, cache="fora:2", steps=6, seconds_per_image=0.5),
        a_mix(0.9, 0.9, cache="fora:2", steps=45, dropped=True),
    ]
    summary = {
        "model": "DiT-S/2", "reference": {"checkpoint": "a", "sampler": "ddim", "steps": 50, "macs_per_image": 1e9},
        "settings": {"cfg": 1.5, "clip": False}, "images": 4, "seed": 0, "device": "cpu", "left": 0, "versions": {"dydit": "0"},
        "judges": {"digits": {"features": "digits-features", "reference": "digits", "images": 100}},
        "command": "dydit frontier a b --out front", "checkpoints": {"a": "runs/a", "b": "runs/b"},
    }  # fmt: skip
    Frontier(summary, mixes).write(folder)
    return folder


def test_a_front_by_hand(tmp_path: Path) -> None:
    front = Frontier.read(a_front(tmp_path / "front"))
    assert [mix.cost for mix in front.front("cost")] == [0.2, 0.4, 0.5, 1.0]
    assert [mix.seconds_per_image for mix in front.front("seconds_per_image")] == [0.4, 0.9, 1.1, 2.0]
    table = front.table
    assert table["on_front_of_macs"].to_list() == [True, False, True, True, False, True]
    assert [front.label(mix) for mix in front.front("cost")] == [
        "a, 10 steps, fora:3", "a, 20 steps", "b at 0.5, 10 steps", "a, 50 steps",
    ]  # fmt: skip
    assert [mix.cost for mix in front.front("cost", "digits")] == [0.2, 0.4, 0.5]
    assert front.main == "digits"
    assert table["on_front_of_macs_digits"].to_list() == [True, False, True, True, False, False]
    assert table["frechet_digits"].to_list() == pytest.approx([9, math.nan, 6, 3, math.nan, 4], nan_ok=True)
    assert table["frechet_digits_sd"].notna().sum() == 4
    near = [(1, 1.0), (2, 1.2), (3, 1.4), (4, 0.5), (5, 0.62)]
    for times, costs in ((1, [1, 4]), (1.25, [1, 2, 4, 5]), (1.5, [1, 2, 3, 4, 5])):
        assert [mix.cost for mix in within([a_mix(*one) for one in near], "cost", times=times)] == costs
    assert front_of([a_mix(1, 2), a_mix(1, 1), a_mix(2, 1)], "cost") == [a_mix(1, 1)]  # alike, the nearer and the cheaper
    assert front_of([a_mix(1, 2)], "seconds_per_image") == []
    (tmp_path / "front" / "frontier.json").write_text(json.dumps({**Frontier.header(), "mixes": [{}]}))
    with pytest.raises(DyditError, match=r"damaged front .*; make it anew: dydit frontier CKPT --out DIR"):
        Frontier.read(tmp_path / "front")


def test_the_mixes_in_rising_cost(models: Path) -> None:
    named = {name: read(models / name) for name in ("static", "dydit", "range")}
    found = candidates(named, FEW)
    # with two steps both caches compute everything
    ways = [(4, "none"), (4, "fora:2"), (4, "taylorseer:2:1@model"), (2, "none")]
    mixes = [one.mix for one in found]
    assert {(mix.steps, mix.cache) for mix in mixes if mix.checkpoint == "static"} == set(ways)
    assert sorted({mix.flops_ratio for mix in mixes if mix.checkpoint == "range"}) == [0.3, 0.5, 0.7, 0.9]  # type: ignore[type-var]
    assert len(mixes) == len({mix.file_name for mix in mixes}) == 6 * len(ways)
    assert [one.forwards for one in found] == sorted(one.forwards for one in found)
    some = FrontierOptions(steps=(3,), samplers=("ddim", "dpmsolver++"), flops_ratios=(0.45,), caches=("none",))
    assert {one.mix.label for one in candidates({"range": named["range"]}, some)} == {
        "range at 0.45, ddim, 3 steps",
        "range at 0.45, dpmsolver++, 3 steps",
    }


def test_what_is_measured(models: Path, done: Path) -> None:
    """MACs are a profile's, distances those of samples that are drawn by hand, seconds of every mix."""
    front = Frontier.read(done)
    by_label = {mix.label: mix for mix in front.mixes}
    static, ranged = read(models / "static"), read(models / "range")

    def samples(checkpoint: Checkpoint, settings: SamplerSettings, cache: CacheOptions) -> torch.Tensor:
        labels = cycle_labels(list(range(10)), 8)
        return run_sampler(executor(checkpoint.build(), "sparse", cache=cache), labels, settings, 0, 4, 0, None)

    reference = samples(static, SamplerSettings(steps=6), CacheOptions())
    dense = profile(static, images=1, settings=SamplerSettings(steps=6), device="cpu").summary["macs_dynamic_per_image"]
    for label, checkpoint, steps, cache in (
        ("static, ddim, 2 steps", static, 2, CacheOptions()),
        ("static, ddim, 4 steps, taylorseer:2:1@model", static, 4, CacheOptions("taylorseer:2:1", at="model")),
        ("range at 0.5, ddim, 4 steps, fora:2", at_ratio(ranged, 0.5), 4, CacheOptions("fora:2")),
    ):
        mix, settings = by_label[label], SamplerSettings(steps=steps)
        if not mix.dropped:
            apart = (samples(checkpoint, settings, cache) - reference).square().flatten(1).mean(1)
            assert mix.distance == pytest.approx(apart.mean().item(), rel=1e-5)
            assert mix.distance_error == pytest.approx(apart.std().item() / 8**0.5, rel=1e-5)
            counted = profile(checkpoint, images=8, settings=settings, cache=cache, device="cpu", batch=4).summary
            assert mix.macs_per_image == pytest.approx(counted["macs_dynamic_per_image"], rel=1e-12)
            assert mix.seconds_per_image is not None
            assert mix.images == 8
        assert mix.cost == pytest.approx(mix.macs_per_image / dense)
    assert not by_label["static, ddim, 2 steps"].dropped
    assert len(front.mixes) == 20
    assert (done / "frontier.csv").read_text().count("\n") == 21
    assert all((mix.seconds_per_image is None) == mix.dropped for mix in front.mixes)


def test_without_a_static_model_everything_on_is_the_reference(models: Path, tmp_path: Path) -> None:
    options = FrontierOptions(steps=(3,), caches=("none",), reference_steps=3, images=2)
    found = run(models, tmp_path / "out", "dydit", options=options).frontier
    assert found.summary["reference"]["checkpoint"] == "dydit"
    assert found.mixes[0].distance > 0
    assert found.mixes[0].cost < 1
    alone = run(models, tmp_path / "static", "static", options=options).frontier
    assert (alone.mixes[0].distance, alone.mixes[0].cost) == (0, 1)


def test_what_is_far_from_the_front_is_dropped_early(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "NEARER", 0.0)  # all that is not cheaper
    done = 0

    def work(amount: int, note: str) -> None:
        nonlocal done
        done += amount

    found = run(models, tmp_path / "out", "static", time=True, on_work=work).frontier
    kept = [mix for mix in found.mixes if not mix.dropped]
    assert [mix.images for mix in found.mixes if mix.dropped] == [2] * (len(found.mixes) - len(kept))
    assert len(kept) < len(found.mixes)
    assert all(mix.seconds_per_image is None for mix in found.mixes if mix.dropped)
    # the progress of what is dropped counts whole; the reference, all mixes, and the runs that are timed
    assert done == 8 * (6 + 4 + 4 + 4 + 2) + 4 * len(kept)
    again = Frontier.read(tmp_path / "out")
    assert again.front("cost") == front_of(kept, "cost")


def test_it_goes_on_after_a_kill_and_measures_nothing_twice(
    models: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "out", 0

    def killed(amount: int, note: str) -> None:
        nonlocal calls
        calls += 1
        if calls > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(models, out, on_work=killed)
    before = {file.name: file.read_bytes() for file in (out / "mixes").iterdir()}
    assert 0 < len(before) < 20
    assert run(models, out).left == 0
    after = {file.name: file.read_bytes() for file in (out / "mixes").iterdir()}
    assert before.items() <= after.items()
    assert after == {file.name: file.read_bytes() for file in (done / "mixes").iterdir()}
    monkeypatch.setattr(studies.Runner, "measure", None)
    assert run(models, out).left == 0
    fewer = FrontierOptions(steps=(2,), caches=("none",), reference_steps=6, images=8, batch=4)
    assert len(run(models, out, options=fewer).frontier.mixes) == 5  # of those that are there
    other = FrontierOptions(steps=(2,), caches=("none",), reference_steps=7, images=8, batch=4)
    with pytest.raises(DyditError, match=r"holds a front with reference_steps 6, and now it is 7; choose another --out"):
        run(models, out, options=other)


def test_what_another_process_is_at_is_left_to_it(models: Path, tmp_path: Path) -> None:
    begun = FrontierOptions(steps=(2,), caches=("none",), reference_steps=6, images=8, batch=4)
    run(models, tmp_path / "out", "static", options=begun)
    *_, mix = (one.mix for one in candidates({"static": read(models / "static")}, FEW))
    with FrontierFolder(tmp_path / "out").claim(mix.file_name):
        found = run(models, tmp_path / "out", "static", time=True, store=True)
    assert (found.left, found.stored, len(found.frontier.mixes)) == (1, [], 3)
    assert mix.label not in {one.label for one in found.frontier.mixes}
    assert not (tmp_path / "out" / "times").exists()
    assert run(models, tmp_path / "out", "static").left == 0


def test_a_stored_front_chooses_how_to_sample(models: Path, done: Path, tmp_path: Path) -> None:
    for name in ("static", "range"):
        shutil.copytree(models / name, tmp_path / name)
    shutil.copytree(done, tmp_path / "out")
    found = run(tmp_path, tmp_path / "out", store=True)
    assert found.stored == [tmp_path / "static", tmp_path / "range"]
    loaded = read(tmp_path / "range")
    front = stored_front(loaded)
    assert {mix.checkpoint for mix in front.mixes} == {"range"}
    points = front.front("cost")
    low, high = points[0], points[-1]
    assert best_within(loaded, front, "cost", 9.0) == high
    assert best_within(loaded, front, "cost", low.cost) == low
    with pytest.raises(
        DyditError, match=rf"--cost 0.001: the front of .*range is from {low.cost:.3g} to {high.cost:.3g}; give"
    ):
        best_within(loaded, front, "cost", 0.001)
    with pytest.raises(DyditError, match=r"--seconds 1e-09: the front of .* s per image; give"):
        best_within(loaded, front, "seconds_per_image", 1e-9)
    set_to, config = with_mix(loaded, front, high, SamplingConfig(SamplerSettings(cfg=3.0), device="cpu"), {"cfg"})
    assert (config.settings.steps, config.settings.sampler, config.settings.cfg) == (high.steps, high.sampler, 3.0)
    sample_images(set_to, tmp_path / "samples", config, num=2)
    record = SampleFolder.read(tmp_path / "samples").record
    assert record["flops_ratio"] == high.flops_ratio
    assert (record["steps"], record["cache"] or "none") == (high.steps, high.cache.partition("@")[0])
    assert with_mix(loaded, front, high, SamplingConfig(SamplerSettings(cfg=3.0)), ())[1].settings.cfg == 1.5
    write(Checkpoint.of(randomize(DiT(TINY), seed=5), []), tmp_path / "other")
    front.store(tmp_path / "other")
    with pytest.raises(DyditError, match="the front that is stored with it is of other weights; make one: dydit frontier"):
        stored_front(read(tmp_path / "other"))
    with pytest.raises(DyditError, match="digits-dit: no front is stored with it; make one: dydit frontier digits-dit --store"):
        stored_front(read("digits-dit"))


JUDGED = replace(FEW, steps=(3, 2), caches=("none", "fora:2"), features=("digits",), num=6, near=1.0)


def test_judges_see_what_is_on_a_checkpoints_front(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same samples as `dydit evaluate` draws, once: not for another judge, nor after a kill, nor where more are asked."""
    out, drawn = tmp_path / "out", 0
    real = open_sampler

    def counted(loaded: Checkpoint, config: SamplingConfig) -> ImageSampler:
        nonlocal drawn
        drawn += 1
        return real(loaded, config)

    monkeypatch.setattr(frontier_judges, "open_sampler", counted)
    monkeypatch.setattr(frontier_folder, "SHARD_SIZE", 4)
    found = run(models, out, "static", "dydit", options=JUDGED).frontier
    judged = {mix.label: mix for mix in found.mixes if mix.judged}
    own = [[mix for mix in found.mixes if mix.checkpoint == name] for name in ("static", "dydit")]
    assert judged.keys() == {mix.label for mixes in own for mix in front_of(mixes, "cost")}
    assert drawn == len(judged) < len(found.mixes)
    config = SamplingConfig(SamplerSettings(steps=2), batch=4, device="cpu")
    images = GeneratedImages(read(models / "static"), config, 6)
    expected = evaluate(images, None, find_extractor("digits"), device="cpu", deviation=True).figures
    figures = judged["static, ddim, 2 steps"].judged["digits"]
    assert figures["frechet"] == pytest.approx(expected["frechet"], rel=1e-6)
    assert (figures["precision"], figures["frechet_sd"]) == (expected["precision"], None)  # 6 images of more features
    assert found.summary["judges"]["digits"]["images"] == 6

    mix = judged["static, ddim, 2 steps"]
    (out / "judged" / "digits" / mix.file_name).unlink()  # as a kill leaves it, between two files of samples
    FrontierFolder(out).samples(mix, 6).path(1).unlink()
    monkeypatch.setitem(FEATURES, "shades", Judge("shades", "mean shades", shades))
    both = replace(JUDGED, features=("digits", "shades"))
    again = run(models, out, "static", "dydit", options=both).frontier
    assert drawn == len(judged) + 1
    assert [mix.judged["digits"] for mix in again.mixes if mix.judged] == [mix.judged["digits"] for mix in judged.values()]
    assert all(mix.judged["shades"]["frechet_sd"] for mix in again.mixes if mix.judged)
    assert (again.judges, again.main) == (["digits", "shades"], "digits")
    more = run(models, out, "static", "dydit", options=replace(both, num=9)).frontier
    assert drawn == 2 * len(judged) + 1
    assert more.front("cost", "digits")[0].judged != again.front("cost", "digits")[0].judged
    with FrontierFolder(out).claim(f"judge-{mix.file_name}"):
        left = run(models, out, "static", "dydit", options=replace(both, num=10, steps=(2,), caches=("none",)))
    assert (left.left, sum(bool(mix.judged) for mix in left.frontier.mixes)) == (1, 1)


def shades(weights: Path | None, device: torch.device) -> Extractor:
    def extract(pixels: Pixels) -> Features:
        return Features(pixels.reshape(len(pixels), -1)[:, ::16].astype("float32"))

    return Extractor("shades", None, 8, 1, {"features": "a pixel"}, extract, DISTANCE_ONLY)


def test_with_judges_a_checkpoint_drops_its_own_mixes_alone(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another checkpoint's mix had put out is measured whole when judges are asked for."""
    monkeypatch.setattr(studies, "NEARER", 0.0)
    plain = replace(JUDGED, features=())
    before = run(models, tmp_path / "out", "dydit", "static", options=plain).frontier
    after = run(models, tmp_path / "out", "dydit", "static", options=JUDGED).frontier
    dropped = [{mix.label for mix in front.mixes if mix.dropped} for front in (before, after)]
    assert dropped[1] < dropped[0]
    assert all(mix.images == (2 if mix.dropped else 8) for mix in after.mixes)
    again = run(models, tmp_path / "out", "dydit", "static", options=plain).frontier  # all that was measured stays
    assert {mix.label for mix in again.mixes if mix.dropped} == dropped[1]


def test_more_model_calls_put_nothing_out(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DyDiT of many steps may have fewer MACs than one step of the static model, and take longer."""
    monkeypatch.setattr(studies, "NEARER", 0.0)
    monkeypatch.setattr(studies, "CHEAPER", 1e9)  # all that was measured before
    options = replace(FEW, steps=(3, 2), caches=("none",))
    found = run(models, tmp_path / "out", "static", "range", options=replace(options, flops_ratios=(0.3,))).frontier
    order = [(mix.label, mix.dropped) for mix in found.mixes]
    assert order == [
        ("range at 0.3, ddim, 2 steps", False),
        ("range at 0.3, ddim, 3 steps", True),
        ("static, ddim, 2 steps", True),
        ("static, ddim, 3 steps", True),
    ]
    only = run(models, tmp_path / "other", "static", "range", options=replace(options, steps=(5,), flops_ratios=(0.3,)))
    assert [mix.dropped for mix in only.frontier.mixes] == [False, True]
    both = replace(options, steps=(5, 1), flops_ratios=(0.3,), caches=("none",))
    few = run(models, tmp_path / "few", "static", "range", options=both).frontier
    assert [(mix.checkpoint, mix.steps, mix.dropped) for mix in few.mixes] == [
        ("range", 1, False), ("static", 1, True), ("range", 5, True), ("static", 5, True),
    ]  # fmt: skip


def test_force_does_not_take_a_folder_from_another_process(models: Path, tmp_path: Path) -> None:
    options = replace(FEW, steps=(2,), caches=("none",))
    run(models, tmp_path / "out", "static", options=options)
    name = next((tmp_path / "out" / "mixes").iterdir()).name
    with FrontierFolder(tmp_path / "out").claim(name), pytest.raises(DyditError) as error:
        run(models, tmp_path / "out", "static", options=options, force=True)
    assert str(error.value) == f"{tmp_path / 'out'}: another process is at {name}, so --force cannot start it anew"
    assert (tmp_path / "out" / "mixes" / name).is_file()
    assert run(models, tmp_path / "out", "static", options=replace(options, images=4), force=True).left == 0


def test_samples_that_no_judge_can_see(tmp_path: Path) -> None:
    write(Checkpoint.of(DiT(replace(TINY, in_channels=4)), []), tmp_path / "static")
    for options, message in (
        (replace(JUDGED, features=("faces",)), "no features 'faces'; choose one of inception"),
        (JUDGED, "makes latents of 4 channels; give the VAE that decodes them with --vae DIR"),
        (replace(JUDGED, reference="nowhere"), "--reference nowhere: no such file"),
    ):
        with pytest.raises(DyditError, match=message):
            run(tmp_path, tmp_path / "out", "static", options=options)
        assert not (tmp_path / "out").exists()
    with pytest.raises(DyditError, match=r"num 1, near 1\.25: judges see 2 samples or more; near is 1, the front, or more"):
        FrontierOptions(num=1)
