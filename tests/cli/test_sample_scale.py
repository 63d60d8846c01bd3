"""`dydit sample --npz`: killed, continued, shared over processes, and always the same bytes."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.model.families.dit import DyDiT, DyDiTConfig
from tests.processes import dydit, kill_once, start_two

pytestmark = pytest.mark.usefixtures("one_thread")

RUN = ["--num", 23, "--shard-size", 5, "--batch", 2, "--steps", 3, "--sampler", "ddpm", "--npz", "--device", "cpu"]


def arguments(model: Path, out: Path, *more: object) -> list[str]:
    return [str(part) for part in ("sample", model, "--out", out, *RUN, *more)]


def array_of(out: Path) -> Any:
    with np.load(out / "samples.npz") as arrays:
        assert arrays.files == ["arr_0"]
        return arrays["arr_0"]


def bytes_of(out: Path) -> bytes:
    return (out / "samples.npz").read_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits with routers that nobody trained: parts are off everywhere, and pixels are not all black or white."""
    static = read("digits-dit")
    dynamic = DyDiT(DyDiTConfig.from_static(static.config))
    dynamic.load_state_dict(static.weights, strict=False)
    torch.manual_seed(0)
    dynamic.reset_routers(bias=1, token_bias=1)
    folder = tmp_path_factory.mktemp("model") / "dynamic"
    write(Checkpoint.of(dynamic.eval(), []), folder)
    return folder


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run in one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    result = dydit(*arguments(model, out, "--json"))
    assert result.exit_code == 0, result.output
    assert (json.loads(result.stdout)["drawn"], json.loads(result.stdout)["processes"]) == (23, 1)
    return out


def test_the_folder_and_the_array(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == ["samples.json", "samples.npz", "shards"]
    assert sorted(path.name for path in (whole / "shards").iterdir()) == [f"{i:06d}.npz" for i in range(5)]
    array = array_of(whole)
    assert array.dtype == np.uint8
    assert array.shape == (23, 8, 8, 3)
    assert len(np.unique(array.reshape(23, -1), axis=0)) == 23
    assert len(np.unique(array)) > 50


def test_the_array_is_what_the_pictures_are_at_any_batch(tmp_path: Path) -> None:
    common = ["sample", "digits-dit", "--num", 9, "--steps", 3, "--device", "cpu"]
    assert dydit(*common, "--out", tmp_path / "png", "--batch", 9).exit_code == 0
    assert dydit(*common, "--out", tmp_path / "npz", "--batch", 2, "--npz", "--shard-size", 4).exit_code == 0
    array = array_of(tmp_path / "npz").astype(int)
    for i in range(9):
        picture = np.asarray(Image.open(tmp_path / "png" / f"{i:05d}-class{i}.png"))[::8, ::8]  # enlarged 8 times
        for channel in range(3):
            assert np.abs(picture - array[i, ..., channel]).max() <= 1  # another batch may round otherwise


def test_missing_shards_are_drawn_and_the_others_kept(model: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "samples.npz").unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    for name in ("000001.npz", "000004.npz"):
        (out / "shards" / name).unlink()
        del kept[name]
    (out / "shards" / ".000001.npz.abcd1234.tmp.npz").write_bytes(b"half a shard")
    result = dydit(*arguments(model, out))
    assert result.exit_code == 0, result.output
    assert "23 images in" in result.stdout
    assert "8 of them drawn now" in result.stdout
    assert bytes_of(out) == bytes_of(whole)
    assert all((out / "shards" / name).stat().st_mtime_ns == when for name, when in kept.items())
    assert len(list((out / "shards").iterdir())) == 5
    before = (out / "samples.npz").stat().st_mtime_ns
    again = dydit(*arguments(model, out, "--json"))
    assert json.loads(again.stdout)["drawn"] == 0
    assert (out / "samples.npz").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", 2], "holds samples with steps 3, and now it is 2; choose another --out, or start anew with --force"),
        (["--num", 22], "images 23, and now it is 22; the first 22 of those are the same ones: take them, choose another"),
        (["--shard-size", 6], "shard_size 5, and now it is 6"),
        (["--seed", 1], "seed 0, and now it is 1"),
        (["--dtype", "bf16"], 'dtype "fp32", and now it is "bf16"'),
        (["--cfg-interval", "0,500"], "cfg_interval [0, 999], and now it is [0, 500]"),
        (["--execution", "complete"], 'execution "sparse", and now it is "complete"'),
        (["--classes", "3"], "classes [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], and now it is [3]"),
    ],
)
def test_other_settings_are_refused(model: Path, whole: Path, more: list[object], message: str) -> None:
    before = (whole / "samples.json").read_bytes(), bytes_of(whole)
    result = dydit(*arguments(model, whole, *more))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert before == ((whole / "samples.json").read_bytes(), bytes_of(whole))


def test_other_weights_are_refused_and_the_same_under_another_name_are_not(model: Path, whole: Path, tmp_path: Path) -> None:
    result = dydit(*arguments(Path("digits-dit"), whole))
    assert result.exit_code == 2
    assert 'holds samples with execution "sparse", and now it is "static"' in result.stderr
    changed = read(model).weights
    changed["pos_embed"] = changed["pos_embed"] + 1e-6
    write(replace(read(model), weights=changed), tmp_path / "changed")
    result = dydit(*arguments(tmp_path / "changed", whole))
    assert result.exit_code == 2
    assert "holds samples with checkpoint_sha256" in result.stderr
    shutil.copytree(model, tmp_path / "renamed")
    assert dydit(*arguments(tmp_path / "renamed", whole)).exit_code == 0


def test_the_two_sets_of_a_training_checkpoint_are_not_mixed(model: Path, tmp_path: Path) -> None:
    weights = read("digits-dit").weights
    torch.save({"model": {name: w * 1.01 for name, w in weights.items()}, "ema": weights, "opt": {}}, tmp_path / "both.pt")
    base = [*arguments(tmp_path / "both.pt", tmp_path / "out"), "--num", "2", "--num-heads", "6", "--family", "dit"]
    assert dydit(*base).exit_code == 0
    result = dydit(*base, "--weights", "model")
    assert result.exit_code == 2
    assert "holds samples with read_as" in result.stderr
    assert dydit(*base).exit_code == 0


def test_force_starts_anew_and_other_folders_are_left_alone(model: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    assert dydit(*arguments(model, out, "--seed", 1, "--force")).exit_code == 0
    assert bytes_of(out) != bytes_of(whole)
    assert json.loads((out / "samples.json").read_text())["seed"] == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "samples.json").write_text('{"images": 23}')
    refused = dydit(*arguments(model, tmp_path / "mine"))
    assert (refused.exit_code, "already exists" in refused.stderr) == (2, True)


def extended(model: Path, out: Path, num: int) -> int:
    """How many images the same command with another --num samples."""
    result = dydit(*arguments(model, out, "--num", num, "--json"))
    assert result.exit_code == 0, result.output
    return int(json.loads(result.stdout)["drawn"])


def test_a_larger_number_adds_images(model: Path, whole: Path, tmp_path: Path) -> None:
    """23 images are four shards of 5 and one of 3, of whose last batch of 2 one image is sampled again in a whole batch."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "shards").iterdir() if path.name < "000004"}
    assert extended(model, out, 31) == 31 - 22
    assert dydit(*arguments(model, tmp_path / "fresh", "--num", 31)).exit_code == 0
    assert bytes_of(out) == bytes_of(tmp_path / "fresh")
    records = [json.loads((folder / "samples.json").read_text()) for folder in (out, tmp_path / "fresh")]
    assert [
        str(folder) in record.pop("command") for folder, record in zip((out, tmp_path / "fresh"), records, strict=True)
    ] == [True] * 2
    assert records[0] == records[1]
    assert np.array_equal(array_of(out)[:22], array_of(whole)[:22])
    assert sorted(path.name for path in (out / "shards").iterdir()) == [f"{i:06d}.npz" for i in range(7)]
    assert all((out / "shards" / name).stat().st_mtime_ns == when for name, when in kept.items())
    assert extended(model, out, 35) == 35 - 30
    assert array_of(out).shape == (35, 8, 8, 3)


@pytest.mark.parametrize("moment", ["the array is gone", "the last shard is renamed", "the record is new", "shards are made"])
def test_a_kill_while_images_are_added_loses_nothing(model: Path, whole: Path, tmp_path: Path, moment: str) -> None:
    """Whatever the moment, the larger number is reached; until the record names it, the old run can be completed too."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "samples.npz").unlink()
    last, beginning = (out / "shards" / f"000004{ending}" for ending in (".npz", ".begun.npz"))
    if moment != "the array is gone":
        last.rename(beginning)
    if moment in ("the record is new", "shards are made"):
        (out / "samples.json").write_text((whole / "samples.json").read_text().replace('"images": 23', '"images": 31'))
    else:
        shutil.copytree(out, tmp_path / "old")
        assert extended(model, tmp_path / "old", 23) == 0
        assert bytes_of(tmp_path / "old") == bytes_of(whole)
        assert len(list((tmp_path / "old" / "shards").iterdir())) == 5
    if moment == "shards are made":  # and the beginning of one is not yet removed
        assert dydit(*arguments(model, tmp_path / "fresh", "--num", 31)).exit_code == 0
        for name in ("000004", "000005"):
            shutil.copy(tmp_path / "fresh" / "shards" / f"{name}.npz", out / "shards")
    assert extended(model, out, 31) == (1 if moment == "shards are made" else 9)
    assert array_of(out).shape == (31, 8, 8, 3)
    assert np.array_equal(array_of(out)[:22], array_of(whole)[:22])
    assert len(list((out / "shards").iterdir())) == 7
    refused = dydit(*arguments(model, out))
    assert (refused.exit_code, "images 31, and now it is 23" in refused.stderr) == (2, True)


def test_a_damaged_shard_is_named(model: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "samples.npz").unlink()
    shutil.copy(out / "shards" / "000004.npz", out / "shards" / "000002.npz")
    result = dydit(*arguments(model, out))
    assert result.exit_code == 2
    assert "000002.npz: damaged shard (its shape is (3, 8, 8, 3), not (5, 8, 8, 3)); delete it" in result.stderr
    assert not (out / "samples.npz").exists()
    (out / "shards" / "000002.npz").unlink()
    assert dydit(*arguments(model, out)).exit_code == 0
    assert bytes_of(out) == bytes_of(whole)


def test_a_killed_run_continues_to_the_same_bytes(model: Path, tmp_path: Path) -> None:
    """`kill -9` after the first of 25 shards; the same command again, and one that nobody disturbed."""
    killed, calm = (arguments(model, tmp_path / name, "--num", 123, "--json") for name in ("killed", "calm"))
    kill_once(killed, lambda: list(tmp_path.glob("killed/shards/0*.npz")))
    there = len(list(tmp_path.glob("killed/shards/0*.npz")))
    assert 1 <= there < 25
    assert not (tmp_path / "killed" / "samples.npz").exists()
    drawn = [json.loads(dydit(*command).stdout)["drawn"] for command in (killed, calm)]
    assert drawn == [123 - 5 * there, 123]
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "calm")
    assert array_of(tmp_path / "calm").shape == (123, 8, 8, 3)


def test_two_processes_make_the_same_bytes(model: Path, whole: Path, tmp_path: Path) -> None:
    """From the beginning that a run of 8 images is."""
    out = tmp_path / "out"
    assert dydit(*arguments(model, out, "--num", 8)).exit_code == 0
    team = start_two(arguments(model, out, "--json"))
    ended = [process.communicate(timeout=120) for process in team]
    assert [process.returncode for process in team] == [0, 0], ended
    summary = json.loads(ended[0][0])
    assert (summary["drawn"], summary["processes"]) == (23 - 7, 2)
    assert ended[1] == ("", "")
    assert bytes_of(out) == bytes_of(whole)


def test_several_processes_need_accelerate_and_npz(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    result = dydit(*arguments(model, tmp_path / "out"))
    assert result.exit_code == 2
    assert "WORLD_SIZE=2: several processes need accelerate: pip install accelerate" in result.stderr
    pictures = dydit("sample", model, "--out", tmp_path / "out", "--num", 1, "--device", "cpu")
    assert pictures.exit_code == 2
    assert "WORLD_SIZE=2: several processes can share a run only with --npz; add it" in pictures.stderr
    assert not (tmp_path / "out").exists()


def test_one_process_needs_no_accelerate(model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert dydit(*arguments(model, tmp_path / "out")).exit_code == 0
    assert bytes_of(tmp_path / "out") == bytes_of(whole)


def test_mistakes_of_the_new_options(model: Path, tmp_path: Path) -> None:
    base = ["sample", model, "--out", tmp_path / "out", "--device", "cpu", "--num", 1, "--steps", 1]
    for more, message in (
        (["--shard-size", 5], "--shard-size is for --npz; add it, or leave the size out"),
        (["--dtype", "fp8"], "'--dtype': 'fp8' is not one of 'fp32', 'bf16', 'fp16'."),
        (["--cfg-interval", "5"], "--cfg-interval 5: write two timesteps, for instance 100,800"),
        (["--cfg-interval", "5,1000"], "guidance interval 5 to 1000; give two timesteps from 0 to 999, the lower first"),
    ):
        result = dydit(*base, *more)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_dtypes_draw_nearly_the_same_pictures(model: Path, tmp_path: Path, dtype: str) -> None:
    grids = {}
    for name in ("fp32", dtype):
        more = ["--num", 4, "--steps", 4, "--device", "cpu", "--json", "--dtype", name, "--out", tmp_path / name]
        result = dydit("sample", "digits-dit", *more)
        assert json.loads(result.stdout)["dtype"] == name
        grids[name] = np.asarray(Image.open(tmp_path / name / "grid.png")).astype(int)
    assert 0 < np.abs(grids["fp32"] - grids[dtype]).mean() < 8
