"""`dydit frontier` and `dydit sample --cost`: what they print and leave, and users' mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import FAST
from tests.processes import dydit, kill_once, start

FEW = ["--steps", "3,2", "--cache", "none,fora:2", "--reference-steps", 4, "--images", 4, *FAST]
JUDGED = ["--features", "digits", "--num", 4, "--near", 1]


@pytest.fixture(scope="module")
def stored(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of a static model and a DyDiT, and the front of both, stored with each."""
    folder = tmp_path_factory.mktemp("stored")
    for name in ("static", "tuned"):
        shutil.copytree(room / name, folder / name)
    done = dydit("frontier", folder / "static", folder / "tuned", "--store", "--out", folder / "front", *FEW, *JUDGED)
    assert done.exit_code == 0, done.output
    shown = " ".join(done.stdout.split())
    for text in ("The front: nearest to the complete model", "static, 3 steps", "samples of static (ddim, 4 steps), 4 images"):
        assert text in shown
    assert f"stored: {folder / 'tuned'}; dydit sample {folder / 'tuned'} --cost" in shown
    assert "digits: Fréchet distance of 4 samples to digits, and its deviation over draws of samples; of" in shown
    assert "measure: " in done.stderr
    assert "judge: " in done.stderr
    return folder


def test_the_same_command_measures_nothing_again(stored: Path) -> None:
    again = dydit("frontier", stored / "static", stored / "tuned", "--out", stored / "front", *FEW, *JUDGED, "--json")
    assert again.exit_code == 0, again.output
    assert "measure" not in again.stderr
    assert "judge" not in again.stderr
    found = json.loads(again.stdout)
    assert (found["format"], found["left"], found["stored"], len(found["mixes"])) == ("dydit-frontier", 0, [], 6)
    assert found["command"].startswith(f"dydit frontier {stored / 'static'}")
    assert {file.name for file in (stored / "front").iterdir() if file.is_file()} == {
        "frontier.csv", "frontier.json", "recipe.json", "reference.npz",
    }  # fmt: skip


def test_it_goes_on_after_kill_9_and_two_processes_share_the_mixes(stored: Path, tmp_path: Path) -> None:
    command = ["frontier", str(stored / "static"), str(stored / "tuned"), "--no-time", *map(str, (*FEW, *JUDGED))]
    out = tmp_path / "out"
    kill_once([*command, "--out", str(out)], lambda: any(out.glob("mixes/[!.]*.json")))
    before = {file.name: file.read_bytes() for file in out.glob("mixes/*.json")}
    assert before
    with start([*command, "--out", str(out)]) as other:
        here = dydit(*command, "--out", out)
        _, err = other.communicate(timeout=120)
    assert (here.exit_code, other.returncode) == (0, 0), here.output + err
    found = {file.name: file.read_bytes() for file in out.glob("mixes/*.json")}
    assert len(found) == 6
    assert before.items() <= found.items()
    # how many threads share a product decides its last bits
    distances = [distances_in(folder) for folder in (out, stored / "front")]
    assert distances[0] == pytest.approx(distances[1], rel=1e-4)
    judged = {mix["checkpoint"] for mix in json.loads((out / "frontier.json").read_text())["mixes"] if mix["judged"]}
    assert judged == {"static", "tuned"}  # whichever of the two wrote the table last


def distances_in(folder: Path) -> dict[str, float]:
    mixes = json.loads((folder / "frontier.json").read_text())["mixes"]
    return {f"{mix['checkpoint']} {mix['steps']} {mix['cache']}": mix["distance"] for mix in mixes if not mix["dropped"]}


def test_its_figure_and_its_report(stored: Path, tmp_path: Path) -> None:
    drawn = dydit("visualize", stored / "front", "--figure", "frontier", "--out", tmp_path / "front.svg", "--data")
    assert drawn.exit_code == 0, drawn.output
    text = (tmp_path / "front.svg").read_text()
    assert "MACs per image [" in text
    assert "seconds per image, cpu [s]" in text
    assert "static, 3 steps" in text
    drawn = dydit("visualize", stored / "front", "--figure", "frontier-judges", "--out", tmp_path / "judges.svg", "--data")
    assert drawn.exit_code == 0, drawn.output
    assert "Fréchet distance, digits" in (tmp_path / "judges.svg").read_text()
    assert "frechet_digits" in (tmp_path / "judges.csv").read_text().partition("\n")[0]
    page = dydit("report", stored / "front", "--out", tmp_path / "page.html", "--json")
    assert [section["about"] for section in json.loads(page.stdout)["sections"]] == ["front"]


@pytest.mark.parametrize("budget", [["--cost", "0.9"], ["--seconds", "1000"]])
def test_sample_takes_the_best_mix_for_a_budget(stored: Path, tmp_path: Path, budget: list[str]) -> None:
    front = json.loads((stored / "tuned" / "frontier.json").read_text())
    assert {mix["checkpoint"] for mix in front["mixes"]} == {"tuned"}
    done = dydit("sample", stored / "tuned", *budget, "--num", 2, "--out", tmp_path / "out", *FAST, "--json")
    assert done.exit_code == 0, done.output
    judged = {mix["cost"]: mix for mix in front["mixes"] if mix["judged"]}
    least = min(mix["judged"]["digits"]["frechet"] for mix in judged.values())
    assert f", digits {least:.4g}" in done.stderr
    record = json.loads(done.stdout)
    (best,) = (mix for mix in judged.values() if (mix["steps"], mix["cache"]) == (record["steps"], record["cache"] or "none"))
    assert best["judged"]["digits"]["frechet"] == least  # of the clamped samples of such a model several may be the same
    assert done.stderr.startswith(f"{budget[0]} {float(budget[1]):g}: tuned, ddim, {best['steps']} steps")
    assert f"cost {best['cost']:.3g}" in done.stderr


def test_mistakes_are_one_line(stored: Path, tmp_path: Path) -> None:
    static, tuned = stored / "static", stored / "tuned"
    for arguments, message in (
        (["frontier", "nowhere"], "nowhere: no such checkpoint"),
        (["frontier", static, "digits-dit"], f"digits-dit: is of another configuration than {static}"),
        (["frontier", static, "--steps", ""], "--steps: the list is empty; give one or more"),
        (["frontier", static, "--steps", "many"], "--steps many: write numbers with commas between"),
        (["frontier", static, "--steps", "0"], "images and steps must be 1 or more"),
        (["frontier", static, "--cache", ","], "--cache: the list is empty"),
        (["frontier", static, "--cache", "fora:1"], "an interval of 1 computes every step"),
        (["frontier", static, "--cache", "fora:9", "--steps", "1"], "cache fora:9: computes all of so few steps"),
        (["frontier", static, "--features", "faces"], "no features 'faces'; choose one of inception, efficientnet, digits"),
        (["frontier", static, "--sampler", "heun"], "sampler heun is not for"),
        (["frontier", tuned, "--flops-ratio", "0.5"], "none of tuned is a DyDiT of a range"),
        (["frontier", "digits-dit", "--store"], "--store: digits-dit cannot hold a front"),
        (["sample", "digits-dit", "--cost", "0.1"], "digits-dit: no front is stored with it; make one: dydit frontier"),
        (["sample", tuned, "--cost", "0.001"], f"--cost 0.001: the front of {tuned} is from"),
        (["sample", tuned, "--cost", "0.9", "--steps", "3"], "--cost chooses --steps from the front"),
        (["sample", tuned, "--seconds", "9", "--cache", "fora:2"], "--seconds chooses --cache from the front"),
        (["sample", tuned, "--cost", "0.9", "--seconds", "9"], "--cost and --seconds are two budgets"),
    ):
        result = dydit(*arguments, "--out", tmp_path / "out", *FAST)
        assert (result.exit_code, result.stdout) == (2, ""), (arguments, result.output)
        assert message in result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "out").exists()
