"""What a report takes, and what it makes of each kind; the command."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dydit_cli.artifacts.base import kinds
from dydit_cli.artifacts.bench import BenchResult
from dydit_cli.artifacts.bench_options import BenchSettings
from dydit_cli.artifacts.profile import Profile
from dydit_cli.artifacts.samples import read_first, write_npz
from dydit_cli.cli.app import app
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.options import LossSettings
from dydit_cli.evaluate.timestep_loss import measure_losses
from dydit_cli.figures.base import all_figures
from dydit_cli.model.weight_cache import SliceStats
from dydit_cli.reports.page import render
from dydit_cli.reports.paths import scrubbed, short, short_command
from dydit_cli.reports.report import SECTIONS, collect
from dydit_cli.reports.section import TIMES
from dydit_cli.studies.recipe import read_study
from dydit_cli.train.recipe import read_recipe, recipe_from_dict
from tests.cli.report.outline import Outline


def test_the_recipe_is_whole(room: Path) -> None:
    (section,) = collect([room / "tuned"])
    assert section.origin.steps[-1].startswith("dydit finetune converted --recipe digits/finetune")
    assert recipe_from_dict(tomllib.loads(section.files["tuned.toml"]), "tuned.toml") == read_recipe("digits/finetune")


def test_the_studys_recipe_is_whole(room: Path, tmp_path: Path) -> None:
    (section,) = collect([room / "study"])
    (tmp_path / "study.toml").write_text(section.files["study.toml"])
    study = read_study(tmp_path / "study.toml")
    assert (study.finetune.steps, study.finetune.calibrate, study.methods.dydit) == (3, True, (0.5, 0.3))


def test_demo_is_expanded(room: Path, tmp_path: Path) -> None:
    figures = {"macs": 48e6, "recognised": 1.0, "seconds": 2.0}
    values = {
        "command": "dydit demo --images 4 --out demo",
        "static": figures, "dynamic": {**figures, "macs": 24e6, "seconds": 1.0}, "ratio": 0.5, "flops_ratio": 0.5,
        "finetune_steps": 20, "finetune_share": 0.02, "classifier_accuracy": 0.99, "images": 4, "sampler": "ddim", "steps": 3,
        "cfg": 1.5, "seed": 0, "device": "cpu",
    }  # fmt: skip
    demo = tmp_path / "demo"
    shutil.copytree(room / "tuned", demo / "finetuned")
    shutil.copytree(room / "compared" / "static", demo / "profile")  # without figures: quick
    shutil.copy(room / "samples-tuned" / "grid.png", demo / "samples.png")
    (demo / "demo.json").write_text(json.dumps(values))
    head, *parts = collect([demo])
    assert [(part.name, part.about) for part in parts] == [("profile", "profile"), ("finetuned", "training run")]
    assert [part.summary for part in parts] == ["", ""]
    assert ("speed-up", f"2.00 {TIMES}") in [(metric.label, metric.text) for metric in head.metrics]
    page = Outline.of(render([head, *parts]))
    assert re.findall(r"^dydit [a-z]+ .*", page.text, flags=re.MULTILINE) == ["dydit demo --images 4 --out demo"]
    assert page.tags["img"] == 1
    shutil.rmtree(demo / "profile")
    with pytest.raises(DyditError, match=r"demo: a demo's folder without its finetuned or profile; run dydit demo"):
        collect([demo])


def test_a_figure_that_a_folder_is_too_small_for_is_left_out(room: Path, tmp_path: Path) -> None:
    settings = LossSettings(images=2, timesteps=2, maps_at=(100,), map_images=1, map_noises=1)
    measure_losses([room / "static"], tmp_path / "alone", settings=settings, device="cpu")
    (section,) = collect([tmp_path / "alone"])
    assert [figure.title for figure in section.figures] == [all_figures()["loss-maps"].title]


def test_a_profile_is_read_once(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sentences, its tables and its three figures are made of the same loaded one."""
    paths: list[Path] = []

    class Counting(Profile):
        @classmethod
        def read(cls, path: str | Path) -> Profile:  # type: ignore[override]
            paths.append(Path(path))
            return Profile.read(path)

    monkeypatch.setattr("dydit_cli.reports.report.identify", lambda path: Counting)
    (section,) = collect([room / "profile"])
    assert (len(section.figures), paths) == (3, [room / "profile"])


def test_a_benchmark_of_merged_tokens(tmp_path: Path) -> None:
    parts = {"attention": {"static": 1.0, "tome": 0.8}, "rest": {"static": 0.5, "tome": 0.5}}
    seconds = {"static": [1.5, 1.6], "tome": [1.3, 1.4]}
    result = BenchResult.of(
        "runs/digits-dit", BenchSettings(), torch.device("cpu"), seconds, "tome", 0.9,
        slices=SliceStats(), peaks={}, parts=parts, tome=0.25,
    )  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps(result.to_dict()))
    (section,) = collect([tmp_path / "bench.json"])
    assert section.summary.startswith(
        "digits-dit, 25.0 % of its tokens merged (ToMe), is 1.15 times as fast as the static model"
    )
    assert [figure.title for figure in section.figures] == ["Where the time goes"]
    assert [column.name for column in section.tables[1].columns] == ["part", "static", "ToMe", "ToMe"]
    assert section.protocol["ToMe"] == "0.25"


def test_key_figures_are_of_one_input_alone(room: Path) -> None:
    (section,) = collect([room / "evaluation.json"])
    text = Outline.of(render([section])).text
    assert "98.5 %of samples, by the classifier" in text
    assert "98.5 %of samples" not in Outline.of(render([section, replace(section, name="other")])).text


def test_large_arrays_are_read_in_part(tmp_path: Path) -> None:
    import numpy as np

    pixels = np.arange(60 * 2 * 2 * 3, dtype=np.uint8).reshape(60, 2, 2, 3)
    write_npz(tmp_path / "samples.npz", pixels.shape, [pixels])
    assert np.array_equal(read_first(tmp_path / "samples.npz", 5), pixels[:5])
    assert len(read_first(tmp_path / "samples.npz", 100)) == 60
    (tmp_path / "samples.npz").write_bytes((tmp_path / "samples.npz").read_bytes()[:200])
    with pytest.raises(DyditError, match=r"samples\.npz: not readable as samples"):
        read_first(tmp_path / "samples.npz", 5)


@pytest.mark.parametrize(
    ("text", "shorter"),
    [
        ("/home/some/runs/a: 3 images", "a: 3 images"),
        ("at 3.0 images/s, MACs/2", "at 3.0 images/s, MACs/2"),
        ("read ~/runs/b.json, then C:\\runs\\c", "read b.json, then c"),
        ("facebook/DiT-XL-2-256", "facebook/DiT-XL-2-256"),
    ],
)
def test_paths_are_cut(text: str, shorter: str) -> None:
    assert short(text) == shorter


def test_paths_in_commands_are_cut() -> None:
    command = "dydit sample '/home/a b/model' --vae=/srv/vae --set data=latents:/srv/latents --out runs/c --classes 0,1"
    assert short_command(command) == "dydit sample model --vae=vae --set data=latents:latents --out runs/c --classes 0,1"
    assert short_command("dydit 'sample /srv/a") == "dydit 'sample a"


def test_values_that_are_paths_are_cut() -> None:
    values = {
        "checkpoint": "runs/with space/a",
        "data": "latents:/somewhere/b",
        "model": "DiT-XL/2",
        "lineage": [{"source": "x/c"}],
    }
    expected = {"checkpoint": "a", "data": "latents:b", "model": "DiT-XL/2", "lineage": [{"source": "c"}]}
    assert scrubbed(values) == expected


def test_mistakes_are_one_line(room: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "profile.json").write_text("{}")
    (tmp_path / "thin.json").write_text('{"protocol": {}, "notes": []}')
    taken = "nothing that a report takes; it takes a checkpoint (config.json)"
    for arguments, message in (
        ([tmp_path / "other"], taken),
        ([tmp_path / "other.json"], taken),
        ([tmp_path / "nowhere"], "nowhere: not found"),
        ([room / "profile", room / "profile"], "profile: is named twice"),
        ([tmp_path / "half"], "half: not a profile: it has no timesteps.csv"),
        ([tmp_path / "thin.json"], "thin.json: looks like an evaluation and lacks"),
    ):
        result = CliRunner().invoke(app, ["report", *map(str, arguments), "--out", str(tmp_path / "page.html")])
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "page.html").exists()


def test_every_kind_has_sections_and_is_named_to_who_asks(tmp_path: Path) -> None:
    assert set(SECTIONS) == set(kinds())
    with pytest.raises(DyditError) as raised:
        collect([tmp_path])
    for kind in kinds().values():
        assert f"{kind.name} ({kind.mark or kind.made_by})" in str(raised.value)


def test_command(room: Path, tmp_path: Path) -> None:
    arguments = ["report", str(room / "static"), "--out", str(tmp_path / "page.html")]
    result = CliRunner().invoke(app, [*arguments, "--title", "A <b>title</b>"])
    assert result.exit_code == 0, result.output
    assert result.stdout.replace("\n", "") == str(tmp_path / "page.html")
    assert "<h1>A &lt;b&gt;title&lt;/b&gt;</h1>" in (tmp_path / "page.html").read_text()
    again = CliRunner().invoke(app, arguments)
    assert (again.exit_code, "already exists" in again.stderr) == (2, True)
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
    assert "<h1>Report: static</h1>" in (tmp_path / "page.html").read_text()
    other = CliRunner().invoke(app, ["report", str(room / "static"), "--out", str(tmp_path / "page.txt")])
    assert (other.exit_code, "end its name in .html" in other.stderr) == (2, True)
