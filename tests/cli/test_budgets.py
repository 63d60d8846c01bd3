"""One DyDiT for every FLOPs ratio of a range, by the commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from dydit_cli.checkpoint.read import read
from tests.chromium import Browser, find_chromium
from tests.cli.conftest import FAST
from tests.processes import dydit

SAMPLER = ["--sampler", "ddim", "--steps", 3]


@pytest.fixture(scope="module")
def ranged(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranged")
    settings = ["train.batch_size=16", "calibration.steps=3", "calibration.images=4", "routing.router_lr=0.5"]
    options = [part for setting in settings for part in ("--set", setting)]
    tuned = dydit(
        "finetune", room / "converted", "--flops-ratio", "0.3:1.0", "--steps", 6, *options, "--out", folder / "range", *FAST
    )
    assert tuned.exit_code == 0, tuned.output
    return folder / "range"


@pytest.fixture(scope="module")
def page(ranged: Path) -> Path:
    """A report of it at 0.5 and at 1."""
    folder = ranged.parent
    for ratio in (0.5, 1):
        command = ["--flops-ratio", ratio, *SAMPLER, *FAST, "--out"]
        for words in (["profile", ranged, "--images", 4, *command, folder / f"p-{ratio}"],
                      ["sample", ranged, "--num", 4, *command, folder / f"s-{ratio}"]):  # fmt: skip
            made = dydit(*words)
            assert made.exit_code == 0, made.output
    made = dydit("report", *(folder / f"{kind}-{ratio}" for kind in "ps" for ratio in (0.5, 1)), "--out", folder / "page.html")
    assert made.exit_code == 0, made.output
    return folder / "page.html"


def test_a_report_has_a_slider_over_its_ratios(page: Path) -> None:
    slider = page.read_text().split('class="slider" ')[1].split('id="protocol"')[0]
    assert slider.startswith('data-dial="FLOPs ratio of range"')
    assert re.findall('class="frame" data-stop="([^"]*)"', slider) == ["0.5", "1"]
    assert (slider.count("<svg"), slider.count("<img")) == (2, 8)


def test_the_slider_shows_one_ratio_at_a_time(page: Path, tmp_path: Path) -> None:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on PATH (apt-get install chromium)")
    script = """(() => {
      const input = document.querySelector(".slider input");
      const seen = () => [...document.querySelectorAll(".frame")].filter((one) => !one.hidden).map((one) => one.dataset.stop);
      const before = seen();
      input.value = 0; input.dispatchEvent(new Event("input"));
      return [before, seen(), document.querySelector(".slider output").textContent];
    })()"""
    with Browser(program, tmp_path / "chromium") as browser:
        opened = browser.open(page)
        assert opened.run(script) == [["1"], ["0.5"], "0.5"]
        assert opened.problems == []


def test_it_runs_at_its_largest_until_a_ratio_is_given(ranged: Path, tmp_path: Path) -> None:
    common = ["--images", 4, *SAMPLER, "--json", *FAST]
    largest = dydit("profile", ranged, *common, "--out", tmp_path / "largest")
    assert largest.exit_code == 0, largest.output
    assert f"{ranged}: is of all FLOPs ratios from 0.3 to 1, and runs at 1; see --flops-ratio" in largest.stderr
    half = dydit("profile", ranged, *common, "--flops-ratio", 0.5, "--out", tmp_path / "half")
    assert half.exit_code == 0, half.output
    assert "FLOPs ratios" not in half.stderr
    assert json.loads(half.stdout)["routed_ratio"] < json.loads(largest.stdout)["routed_ratio"] == 1
    for command in (
        ["sample", ranged, "--flops-ratio", 0.5, "--num", 4, *SAMPLER, "--out", tmp_path / "samples", *FAST],
        ["bench", ranged, "--flops-ratio", 0.5, "--measure", 1, "--repeats", 1, "--batch", 2, *FAST],
        ["export", ranged, tmp_path / "half.pt", "--format", "dydit", "--flops-ratio", 0.5],
        ["visualize", tmp_path / "half", "--out", tmp_path / "half.png"],
    ):
        result = dydit(*command)
        assert result.exit_code == 0, result.output
    judged = dydit("evaluate", ranged, "--flops-ratio", 0.5, "--num", 4, "--features", "digits", *SAMPLER, "--json", *FAST)
    assert json.loads(judged.stdout)["protocol"]["flops_ratio"] == 0.5
    shown = dydit("inspect", ranged)
    assert "0.3 to 1, measured at" in " ".join(shown.stdout.split())


def test_ratios_by_timestep(ranged: Path, tmp_path: Path) -> None:
    command = ["allocate", ranged, tmp_path / "a", "--flops-ratio", 0.6, "--images", 4, *SAMPLER, *FAST]
    shown = dydit(*command)
    assert shown.exit_code == 0, shown.output
    assert "with one ratio for all timesteps" in shown.stdout
    found = json.loads(dydit(*command, "--force", "--json").stdout)
    assert [t for t, _ in found["pairs"]] == [0, 500, 999]
    assert found["distance"] <= found["even_distance"]
    assert read(tmp_path / "a").lineage[-1]["action"] == "allocate"
    profiled = dydit("profile", tmp_path / "a", "--images", 4, *SAMPLER, "--json", "--out", tmp_path / "p", *FAST)
    assert json.loads(profiled.stdout)["routed_ratio"] == pytest.approx(found["ratio"], abs=0.1)
    assert "allocated by timestep" in " ".join(dydit("inspect", tmp_path / "a").stdout.split())


def test_a_far_shift_is_warned_of(room: Path, tmp_path: Path) -> None:
    for ratio, warned in ((0.45, False), (0.8, True)):
        command = ["calibrate", room / "tuned", tmp_path / str(ratio), "--flops-ratio", ratio, "--images", 4, *SAMPLER, *FAST]
        result = dydit(*command)
        assert result.exit_code == 0, result.output
        assert "every router shifted by" in " ".join(result.stdout.split())
        assert ("was made for 0.5; so far from it pictures get worse" in result.stderr) == warned
        assert json.loads(dydit(*command, "--force", "--json").stdout)["target"] == ratio


def test_mistakes_are_one_line(ranged: Path, room: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out"]
    for arguments, message in (
        (["sample", ranged, "--flops-ratio", 0.2, *out], "FLOPs ratio 0.2 is out of the model's range, 0.3 to 1"),
        (["sample", room / "tuned", "--flops-ratio", 0.4, *out], "has one FLOPs ratio; train a model of a range"),
        (["sample", room / "static", "--flops-ratio", 0.4, *out], "is a static model, which has no FLOPs ratio to set"),
        (["finetune", room / "converted", "--flops-ratio", "0.3-1", *out], "--flops-ratio '0.3-1': give one, such as 0.5, or"),
        (["finetune", room / "converted", "--flops-ratio", "1:0.3", *out], "FLOPs ratios 1:0.3; give the smaller one first"),
        (["finetune", ranged, "--flops-ratio", "0.4:1", *out], "is of the range 0.3:1; keep it, or begin with a DyDiT of one"),
        (["calibrate", ranged, tmp_path / "out", "--flops-ratio", 0.5], "say --flops-ratio where it is used"),
        (["allocate", room / "tuned", tmp_path / "out", "--flops-ratio", 0.5], "has one FLOPs ratio; train a model of a range"),
        (["export", ranged, tmp_path / "out", "--format", "dydit"], "choose one with --flops-ratio, or use --format native"),
    ):
        result = dydit(*arguments)
        assert (result.exit_code, result.stdout) == (2, ""), (arguments, result.output)
        assert message in result.stderr, result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "out").exists()


def test_a_study_measures_it_at_several_ratios(room: Path, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(f"""
model = "{room / "static"}"
seeds = [0]
[finetune]
steps = 2
range_steps = 4
[methods]
control = false
dydit = [0.5]
range = [1.0, 0.5, 0.3]
[evaluation]
images = 12
steps = 2
held_out = 2
[timing]
images = 2
repeats = 1
""")
    result = dydit("study", tmp_path / "study.toml", "--out", tmp_path / "out", *FAST)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "out" / "study.csv")
    assert table["method"].to_list() == ["static", "dydit", "range", "range", "range"]
    ranged = table[table["method"] == "range"]
    assert ranged["ratio"].is_monotonic_decreasing
    assert ranged["finetune_steps"].to_list() == [4, 4, 4]
    assert sorted(path.name for path in (tmp_path / "out/checkpoints").iterdir()) == ["dydit-0.5-seed0", "range-1-seed0"]
    assert "| one DyDiT for all ratios, at 0.5 |" in (tmp_path / "out/study.md").read_text()
    picture = dydit("visualize", tmp_path / "out", "--figure", "tradeoff", "--out", tmp_path / "picture.png")
    assert picture.exit_code == 0, picture.output
    refused = dydit("study", tmp_path / "study.toml", "--out", tmp_path / "no", "--set", "methods.range=[0.2]", *FAST)
    assert (refused.exit_code, "methods.range must be in finetune.range, 0.3 to 1" in refused.stderr) == (2, True)
