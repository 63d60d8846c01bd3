"""`dydit evaluate` on what `dydit sample` makes, on the real digits, and on users' mistakes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dydit_cli.cli.commands.evaluate import OF_IMAGES
from dydit_cli.evaluate.registry import FEATURES
from tests.processes import dydit
from tests.unit.test_evaluate_networks import STAND_IN

DIGITS = ["--features", "digits", "--device", "cpu"]
RECORDED = {
    "checkpoint": "digits-dit",
    "sampler": "ddim",
    "steps": 2,
    "cfg": 1.5,
    "cfg_channels": "3",
    "cfg_interval": [0, 999],
    "seed": 0,
    "dtype": "fp32",
}
DRAWN = ["--num", 6, "--steps", 2, "--classes", "0,1,2"]


def figures(*args: object) -> dict[str, Any]:
    result = dydit(*args, "--json")
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same six images as pictures and as an array."""
    folder = tmp_path_factory.mktemp("room")
    for more in (["--out", folder / "pictures"], ["--out", folder / "array", "--npz"]):
        result = dydit("sample", "digits-dit", *DRAWN, "--device", "cpu", *more)
        assert result.exit_code == 0, result.output
    return folder


def test_pictures_array_and_checkpoint_have_the_same_figures(room: Path) -> None:
    results = [figures("evaluate", room / name, *DIGITS) for name in ("pictures", "array", "array/samples.npz")]
    results.append(figures("evaluate", "digits-dit", *DRAWN, *DIGITS))
    for result in results:
        assert set(result) == {"frechet", "recognised", "precision", "recall", "protocol", "notes", "command"}
        assert result["frechet"] == pytest.approx(results[0]["frechet"], rel=1e-5)
        assert [result[name] for name in ("recognised", "precision", "recall")] == [
            results[0][name] for name in ("recognised", "precision", "recall")
        ]
        protocol = result["protocol"]
        assert {**protocol, **RECORDED} == protocol
        assert (protocol["images"], protocol["classes"], protocol["reference"]) == (6, "0-2", "digits")
        assert len(protocol["reference_sha256"]) == len(protocol["features_sha256"]) == 64
        assert protocol["features_accuracy"] >= 0.97
        assert any("6 samples for 64 features" in note for note in result["notes"])


def test_the_table_and_the_file(room: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "figures.json"
    result = dydit("evaluate", room / "pictures", *DIGITS, "--out", out)
    assert result.exit_code == 0, result.output
    for text in ("Fréchet distance", "recognised", "precision", "recall", "of held-out real images", "taken back exactly"):
        assert text in " ".join(result.stdout.split())
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "note: 6 samples for 64 features" in result.stderr
    stored, shown = json.loads(out.read_text()), figures("evaluate", room / "pictures", *DIGITS)
    assert stored.pop("command") == f"{shown.pop('command')} --out {out}"
    assert stored == shown
    again = dydit("evaluate", room / "pictures", *DIGITS, "--out", out)
    assert (again.exit_code, "already exists" in again.stderr) == (2, True)
    assert dydit("evaluate", room / "pictures", *DIGITS, "--out", out, "--force").exit_code == 0


def test_real_digits_by_name() -> None:
    held_out = figures("evaluate", "digits:held-out", *DIGITS)
    assert held_out["recognised"] >= 0.97
    assert (held_out["protocol"]["images"], held_out["protocol"]["sampler"]) == (360, None)
    same = figures("evaluate", "digits:held-out", "--reference", "digits:held-out", *DIGITS)
    assert (same["frechet"], same["precision"], same["recall"]) == (pytest.approx(0, abs=1e-6), 1, 1)
    assert figures("evaluate", "digits:held-out", "--num", 100, *DIGITS)["protocol"]["images"] == 100
    many = dydit("evaluate", "digits:held-out", "--num", 361, *DIGITS)
    assert (many.exit_code, "digits:held-out has 360 images, and --num asks for 361" in many.stderr) == (2, True)


def test_unlabelled_images_are_not_recognised(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", pixels)
    result = figures("evaluate", tmp_path / "x.npz", *DIGITS)
    assert result["recognised"] is None
    assert any("no classes are known" in note for note in result["notes"])
    shown = dydit("evaluate", tmp_path / "x.npz", *DIGITS)
    assert "not recorded" in shown.stdout


def test_the_figures_of_inception(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FEATURES, "inception", replace(FEATURES["inception"], open=lambda weights, device: STAND_IN))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "ref.npz", pixels)
    command = ["evaluate", room / "array", "--reference", tmp_path / "ref.npz", "--device", "cpu"]
    result = figures(*command)
    assert set(result) == {"fid", "sfid", "inception_score", "precision", "recall", "protocol", "notes", "command"}
    assert result["protocol"]["inception_score_split"] == 5000
    assert result["fid"] > 0
    table = dydit(*command).stdout
    assert all(len(line) <= 80 for line in table.splitlines())
    for name in ("FID", "sFID", "inception score", "precision", "recall"):
        assert name in table


def test_mistakes_are_one_line(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, None)
    np.savez(tmp_path / "bare.npz", mu=np.zeros(3))
    for arguments, message in (
        (
            [room / "pictures", "--features", "vgg"],
            "no features 'vgg'; choose one of inception, efficientnet, digits, fashion",
        ),
        ([room / "pictures"], "needs torch-fidelity: pip install 'dydit[evaluate]'"),
        ([room / "pictures", *DIGITS, "--reference", tmp_path / "none"], "no such file; give an ADM .npz, a folder"),
        ([room / "pictures", *DIGITS, "--reference", tmp_path / "bare.npz"], "has mu without sigma"),
        ([room / "pictures", *DIGITS, "--steps", 5], "--steps is for a checkpoint to sample from"),
        ([room / "array", *DIGITS, "--cfg-interval", "1,2"], "--cfg-interval is for a checkpoint to sample from"),
        ([room / "pictures", *DIGITS, "--out", tmp_path / "x.csv"], "figures are stored as JSON; end the name in .json"),
        (["no-such-thing", *DIGITS], "no-such-thing: no such samples and no such checkpoint; give"),
        (["no-such-thing"], "no-such-thing: no such samples and no such checkpoint; give"),
        (["no-such/thing"], "no-such/thing: "),
        (["latents:nothing", *DIGITS], "nothing: no latents (index.json)"),
        (["digits-dit", *DIGITS, "--num", 1], "--num"),
        (["digits-dit", *DIGITS, "--classes", "10"], "the model has classes 0 to 9"),
    ):
        result = dydit("evaluate", *arguments)
        assert (result.exit_code, result.stdout) == (2, ""), arguments
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "x.csv").exists()


def test_what_images_are_evaluated_with_are_options() -> None:
    shown = dydit("evaluate", "--help").stdout
    for name in OF_IMAGES:
        assert name in shown
