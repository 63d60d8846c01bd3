"""`dydit encode`: killed, continued, shared over processes, and always the same bytes; then trained from."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import Result

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.data.latents import LatentData
from dydit_cli.distributed import Distributed
from dydit_cli.model.families.dit import DiTConfig, DyDiT, DyDiTConfig
from dydit_cli.model.latent_norm import SD, LatentNorm
from tests.processes import dydit, kill_once, start_two
from tests.vaes import make_vae

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, PICTURES = ("cat", "dog"), 23
RUN = ["--size", 16, "--shard-size", 5, "--batch", 2, "--device", "cpu"]
SMALL = {"patch_size": 2, "hidden_size": 32, "depth": 2, "num_heads": 4, "num_classes": 2}


def arguments(room: Path, out: Path, *more: object) -> list[str]:
    return [str(part) for part in ("encode", room / "images", out, "--vae", room / "vae", *RUN, *more)]


def draw_pictures(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        place = folder / CLASSES[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(place / f"{i:03d}.png")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ with 23 pictures of two classes, and vae/, a random one that makes 16 x 16 pixels 8 x 8."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("room")
    draw_pictures(folder / "images", PICTURES)
    torch.manual_seed(0)
    vae: Any = AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=4,
    )
    vae.save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def whole(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run in one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    result = dydit(*arguments(room, out))
    assert result.exit_code == 0, result.output
    assert "23 images of 2 classes as 4x8x8 latents in" in result.stdout
    assert "23 of them encoded now" in result.stdout
    assert f"dydit finetune CKPT --recipe RECIPE --data latents:{out} --out DIR" in result.stdout
    return out


def content(out: Path) -> dict[str, bytes]:
    """Everything that training reads."""
    shards = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    return {**shards, "index.json": (out / "index.json").read_bytes()}


def refused(result: Result, *messages: str) -> None:
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    for message in messages:
        assert message in result.stderr


def test_the_folder_and_its_index(room: Path, whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == ["encode.json", "index.json", "shards"]
    index = json.loads((whole / "index.json").read_text())
    assert (index["format"], index["format_version"], index["count"]) == ("dydit-latents", 1, 23)
    assert (index["classes"], index["shape"], index["size"], index["skipped"]) == (["cat", "dog"], [4, 8, 8], 16, [])
    assert (index["scaling_factor"], index["vae"], len(index["vae_sha256"])) == (0.18215, str(room / "vae"), 64)
    assert [shard["count"] for shard in index["shards"]] == [5, 5, 5, 5, 3]
    shards = [load_file(whole / "shards" / shard["file"]) for shard in index["shards"]]
    assert [shard["mean"].shape for shard in shards[3:]] == [(5, 2, 4, 8, 8), (3, 2, 4, 8, 8)]
    assert torch.cat([shard["label"] for shard in shards]).tolist() == [0] * 12 + [1] * 11
    assert all((shard["std"] > 0).all() for shard in shards)
    assert len(torch.cat([shard["mean"] for shard in shards]).flatten(0, 1).unique(dim=0)) == 46


def test_missing_shards_are_made_and_the_others_kept(room: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "index.json").unlink()
    for name in ("000001", "000004"):
        (out / "shards" / f"{name}.safetensors").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    (out / "shards" / ".000001.safetensors.abcd1234.tmp.safetensors").write_bytes(b"half a shard")
    result = dydit(*arguments(room, out, "--json"))
    assert result.exit_code == 0, result.output
    assert (json.loads(result.stdout)["encoded"], json.loads(result.stdout)["count"]) == (8, 23)
    assert content(out) == content(whole)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    before = (out / "index.json").stat().st_mtime_ns
    assert json.loads(dydit(*arguments(room, out, "--json")).stdout)["encoded"] == 0
    assert (out / "index.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", 18], "holds latents with size 16, and now it is 18; choose another OUT, or start anew with --force"),
        (["--dtype", "fp16"], 'dtype "fp32", and now it is "fp16"'),
        (["--shard-size", 6], "shard_size 5, and now it is 6"),
        (["--size", 17], "size 17: "),
        (["--dtype", "fp8"], "'--dtype': 'fp8' is not one of 'fp32', 'fp16'."),
        (["--vae", "nothing/here/at/all"], "nothing/here/at/all: not a VAE; give a diffusers AutoencoderKL folder"),
    ],
)
def test_other_settings_are_refused(room: Path, whole: Path, more: list[object], message: str) -> None:
    before = content(whole)
    refused(dydit(*arguments(room, whole, *more)), message)
    assert content(whole) == before


def test_other_pictures_or_another_vae_are_refused_and_the_same_ones_elsewhere_are_not(
    room: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(room, tmp_path / "moved")
    same = dydit(*arguments(tmp_path / "moved", whole, "--json"))
    assert json.loads(same.stdout)["encoded"] == 0
    Image.new("RGB", (20, 20)).save(tmp_path / "moved" / "images" / "dog" / "new.png")
    refused(dydit(*arguments(tmp_path / "moved", whole)), "holds latents with files 23, and now it is 24")
    (tmp_path / "moved" / "images" / "dog" / "001.png").unlink()
    refused(dydit(*arguments(tmp_path / "moved", whole)), "holds latents with files_sha256")
    weights = load_file(room / "vae" / "diffusion_pytorch_model.safetensors")
    weights["encoder.conv_in.bias"] += 1e-3
    save_file(weights, tmp_path / "moved" / "vae" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    other = ["encode", room / "images", whole, "--vae", tmp_path / "moved" / "vae", *RUN]
    refused(dydit(*other), "holds latents with vae_sha256")


def test_force_starts_anew_and_other_folders_are_left_alone(room: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    assert dydit(*arguments(room, out, "--dtype", "fp16", "--force")).exit_code == 0
    half, full = (load_file(place / "shards" / "000000.safetensors")["mean"] for place in (out, whole))
    assert half.dtype == torch.float16
    assert torch.equal(half, full.half())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    refused(dydit(*arguments(room, tmp_path / "mine")), "mine: already exists; choose another name")
    refused(dydit(*arguments(room, tmp_path / "mine", "--force")), "is a folder that dydit did not write")


def test_unreadable_pictures_are_skipped_counted_and_listed(room: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(room, tmp_path / "room")
    images = sorted((tmp_path / "room" / "images").rglob("*.png"))
    for path in images[5:11]:  # the whole second shard, and one more
        path.write_bytes(path.read_bytes()[:200])
    images[22].write_text("no image")
    result = dydit(*arguments(tmp_path / "room", tmp_path / "out", "--json"))
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["count"], len(figures["skipped"]), figures["encoded"]) == (16, 7, 16)
    assert [shard["count"] for shard in figures["shards"]] == [5, 0, 4, 5, 2]
    assert "7 unreadable images skipped: cat/010.png (image file is truncated" in result.stderr
    assert "and 2 more" in result.stderr
    assert ["dog/021.png", "not an image"] in figures["skipped"]
    ours, theirs = LatentData(tmp_path / "out"), LatentData(whole)
    readable = [i for i in range(23) if i not in {*range(5, 11), 22}]
    for place, i in enumerate(readable):
        a, b = (data.take(torch.tensor([n]))[0] for data, n in ((ours, place), (theirs, i)))
        assert torch.allclose(a, b, atol=1e-5)  # in other batches, whose last bits may differ
    assert len(ours.skipped) == 7


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_pipe_among_pictures_is_skipped(room: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(room, tmp_path / "room")
    os.mkfifo(tmp_path / "room" / "images" / "cat" / "pipe.png")
    figures = json.loads(dydit(*arguments(tmp_path / "room", tmp_path / "out", "--json")).stdout)
    assert (figures["encoded"], figures["count"], figures["skipped"]) == (23, 23, [["cat/pipe.png", "not a regular file"]])


def test_a_folder_without_a_readable_picture(room: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "cat").mkdir(parents=True)
    base = ["encode", tmp_path / "images", tmp_path / "out", "--vae", room / "vae", *RUN]
    refused(dydit(*base), "images: no images in it; put those of each class into a folder of its own")
    assert not (tmp_path / "out").exists()
    (tmp_path / "images" / "cat" / "x.png").write_text("x")
    result = dydit(*base)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "none of its 1 images can be read, for instance cat/x.png (not an image)" in result.stderr
    refused(dydit(*base[:2], tmp_path / "images" / "out", *base[3:]), "lies in the folder of the images")
    refused(dydit("encode", tmp_path / "gone", tmp_path / "out", "--vae", room / "vae"), "gone: no such folder")


def test_a_damaged_shard_is_named(room: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "index.json").unlink()
    shutil.copy(out / "shards" / "000004.safetensors", out / "shards" / "000002.safetensors")
    result = dydit(*arguments(room, out))
    assert result.exit_code == 2
    assert "000002.safetensors: damaged shard (" in result.stderr
    (out / "shards" / "000002.safetensors").unlink()
    assert dydit(*arguments(room, out)).exit_code == 0
    assert content(out) == content(whole)


def test_a_killed_run_continues_to_the_same_bytes(room: Path, tmp_path: Path) -> None:
    """`kill -9` after the first of 100 shards; the same command again, and one that nobody disturbed."""
    draw_pictures(tmp_path / "room" / "images", 300)
    shutil.copytree(room / "vae", tmp_path / "room" / "vae")
    killed, calm = (arguments(tmp_path / "room", tmp_path / name, "--shard-size", 3, "--json") for name in ("killed", "calm"))
    kill_once(killed, lambda: list(tmp_path.glob("killed/shards/0*")))
    there = len(list(tmp_path.glob("killed/shards/0*")))
    assert 1 <= there < 100
    assert not (tmp_path / "killed" / "index.json").exists()
    data = f"latents:{tmp_path / 'killed'}"
    begun = dydit("finetune", "digits-dit", "--recipe", "imagenet/base", "--data", data, "--out", tmp_path / "run")
    assert begun.exit_code == 2
    assert "encoding them has not ended; run the same dydit encode again" in begun.stderr
    encoded = [json.loads(dydit(*command).stdout)["encoded"] for command in (killed, calm)]
    assert encoded == [300 - 3 * there, 300]
    assert content(tmp_path / "killed") == content(tmp_path / "calm")


def test_two_processes_make_the_same_bytes(room: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    team = start_two(arguments(room, out, "--json"))
    ended = [process.communicate(timeout=120) for process in team]
    assert [process.returncode for process in team] == [0, 0], ended
    figures = json.loads(ended[0][0])
    assert (figures["encoded"], figures["processes"]) == (23, 2)
    assert ended[1] == ("", "")
    assert content(out) == content(whole)


def test_each_process_makes_its_own_shards(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = Distributed(state=SimpleNamespace(process_index=1, num_processes=2, wait_for_everyone=lambda: None))
    monkeypatch.setattr("dydit_cli.data.encode.share_work", lambda device: nullcontext(second))
    result = dydit(*arguments(room, tmp_path / "out"))
    assert (result.exit_code, result.output) == (0, "")
    assert [path.name for path in sorted(tmp_path.rglob("*.*"))] == ["000001.safetensors", "000003.safetensors"]


def write_dydit(folder: Path, channels: int, size: int) -> Path:
    torch.manual_seed(0)
    config = DyDiTConfig.from_static(DiTConfig(**SMALL, in_channels=channels, input_size=size), token_router_reduction=4)  # type: ignore[arg-type]
    write(Checkpoint.of(DyDiT(config), []), folder)
    return folder


def test_models_are_tuned_on_latents_and_on_pictures(room: Path, whole: Path, tmp_path: Path) -> None:
    latent, pixel = write_dydit(tmp_path / "latent", 4, 8), write_dydit(tmp_path / "pixel", 3, 8)
    few = ["--recipe", "imagenet/base", "--steps", 2, "--batch-size", 4, "--device", "cpu", "--json"]
    images = room / "images"
    for model, data in ((latent, f"latents:{whole}"), (pixel, f"imagefolder:{images}")):
        result = dydit("finetune", model, "--data", data, "--out", tmp_path / f"{model.name}-tuned", *few)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["steps"] == 2
        assert json.loads((tmp_path / f"{model.name}-tuned" / "recipe.json").read_text())["data"] == data
    for model, data, message in (
        (pixel, f"latents:{whole}", "has 4 channels and the model 3; choose data that fit the model"),
        (latent, f"imagefolder:{images}", "write them once with dydit encode IMAGES OUT --vae PATH and give latents:OUT"),
        (latent, "latents:nowhere", "nowhere: no latents (index.json); make them with dydit encode"),
        (
            latent,
            "photos",
            "no data set 'photos'; choose one of digits, fashion, idx:PATH, imagefolder:PATH, latents:PATH",
        ),
    ):
        refused(dydit("finetune", model, "--data", data, "--out", tmp_path / "no", *few), message)
    assert not (tmp_path / "no").exists()


def test_pictures_that_finetuning_could_not_read_are_told(room: Path, tmp_path: Path) -> None:
    shutil.copytree(room / "images", tmp_path / "images")
    (tmp_path / "images" / "cat" / "000.png").write_text("no image")
    model = write_dydit(tmp_path / "pixel", 3, 8)
    few = ["--recipe", "imagenet/base", "--steps", 1, "--batch-size", 4, "--device", "cpu"]
    result = dydit("finetune", model, "--data", f"imagefolder:{tmp_path / 'images'}", "--out", tmp_path / "tuned", *few)
    assert result.exit_code == 0, result.output
    assert "1 unreadable image skipped: cat/000.png (not an image)" in result.stderr


def test_latents_are_normalised_by_their_own_statistics(room: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    shards = {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    result = dydit(*arguments(room, out, "--latent-stats", "measure", "--json"))
    assert result.exit_code == 0, result.output
    index = json.loads((out / "index.json").read_text())
    assert (json.loads(result.stdout)["encoded"], index["format_version"], index["scaling_factor"]) == (0, 2, 1.0)
    assert shards == {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}  # they hold the VAE's own
    mean = torch.cat([load_file(path)["mean"][:, 0] for path in sorted(shards)])
    assert np.allclose(index["latents_mean"], mean.mean((0, 2, 3)), atol=1e-5)
    assert np.allclose(index["latents_std"], mean.std((0, 2, 3)), rtol=1e-5)
    taken = LatentData(out).take(torch.arange(23))[0]
    assert torch.allclose(taken.mean((0, 2, 3)), torch.zeros(4), atol=1e-5)
    assert torch.allclose(taken.std((0, 2, 3)), torch.ones(4), atol=1e-5)
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    assert dydit(*arguments(room, other, "--latent-stats", out)).exit_code == 0
    assert content(other) == content(out)
    assert dydit(*arguments(room, other)).exit_code == 0
    assert content(other) == content(whole)


def test_autoencoders_of_other_classes(room: Path, tmp_path: Path) -> None:
    for kind in ("dc", "shift", "none"):
        make_vae(kind, tmp_path / kind)
    base = ["encode", room / "images"]
    assert dydit(*base, tmp_path / "a", "--vae", tmp_path / "dc", *RUN).exit_code == 0
    sure, index = LatentData(tmp_path / "a"), json.loads((tmp_path / "a" / "index.json").read_text())
    assert (index["format_version"], index["scaling_factor"], index["shape"]) == (1, 0.41407, [4, 8, 8])
    four = torch.zeros(4, dtype=torch.long)
    assert len(sure.take(four, torch.arange(4))[0].unique(dim=0)) == 2  # the picture and its mirror image, and no noise
    assert dydit(*base, tmp_path / "b", "--vae", tmp_path / "shift", *RUN).exit_code == 0
    assert LatentData(tmp_path / "b").latents == LatentNorm(0.5, (0.25,))
    refused(
        dydit(*base, tmp_path / "c", "--vae", tmp_path / "none", *RUN), "does not say how its latents are normalised; measure"
    )
    bad = dydit(*base, tmp_path / "c", "--vae", tmp_path / "none", "--latent-stats", "gone", *RUN)
    refused(bad, "gone: no statistics of latents; give latents_stats.pt")
    assert not (tmp_path / "c").exists()
    assert dydit(*base, tmp_path / "c", "--vae", tmp_path / "none", "--latent-stats", "measure", *RUN).exit_code == 0


def test_a_tuned_model_stores_how_its_latents_were_normalised(room: Path, whole: Path, tmp_path: Path) -> None:
    model, out = write_dydit(tmp_path / "model", 4, 8), tmp_path / "measured"
    shutil.copytree(whole, out)
    assert dydit(*arguments(room, out, "--latent-stats", "measure")).exit_code == 0
    few = ["--recipe", "imagenet/base", "--steps", 1, "--batch-size", 4, "--device", "cpu", "--json"]
    for name, data in (("sd", whole), ("stats", out)):
        result = dydit("finetune", model, "--data", f"latents:{data}", "--out", tmp_path / name, *few)
        assert result.exit_code == 0, result.output
    norm = LatentData(out).latents
    assert (read(tmp_path / "sd").latents, read(tmp_path / "stats").latents) == (SD, norm)
    assert f"{norm.describe()} of the VAE's z" in " ".join(dydit("inspect", tmp_path / "stats").stdout.split())
    assert json.loads(dydit("inspect", tmp_path / "stats", "--json").stdout)["latents"] == norm.to_dict()
    again = dydit("finetune", tmp_path / "sd", "--data", f"latents:{out}", "--out", tmp_path / "no", *few)
    refused(
        again, f"has latents {norm.describe()} and the model takes z * 0.18215; encode", "dydit encode with --latent-stats CKPT"
    )
    assert not (tmp_path / "no").exists()
    assert dydit("finetune", tmp_path / "stats", "--data", f"latents:{out}", "--out", tmp_path / "more", *few).exit_code == 0


def test_samples_are_decoded_with_what_the_checkpoint_stores(room: Path, tmp_path: Path) -> None:
    """Three ways to the same pictures: stored, given, and in the VAE's own configuration; and one line without any."""
    model, vae = write_dydit(tmp_path / "model", 4, 8), make_vae("none", tmp_path / "vae")
    norm = LatentNorm(0.5, (1.0, -1.0, 0.0, 2.0), (2.0, 1.0, 3.0, 1.0))
    (tmp_path / "norm.json").write_text(json.dumps(norm.to_dict()))
    few = ["--num", 2, "--steps", 2, "--device", "cpu"]
    refused(
        dydit("sample", model, "--vae", vae, *few, "--out", tmp_path / "no"),
        f"{vae}: its configuration has no statistics of its latents, and the checkpoint stores none; give",
    )
    given = ["--latent-stats", tmp_path / "norm.json"]
    assert dydit("sample", model, "--vae", vae, *given, *few, "--out", tmp_path / "given").exit_code == 0
    assert dydit("export", model, tmp_path / "stored", "--format", "native", *given).exit_code == 0
    assert dydit("sample", tmp_path / "stored", "--vae", vae, *few, "--out", tmp_path / "b").exit_code == 0
    told = make_vae("kl", tmp_path / "told")
    config = json.loads((told / "config.json").read_text())
    (told / "config.json").write_text(json.dumps({**config, **norm.to_dict()}))
    assert dydit("sample", model, "--vae", told, *few, "--out", tmp_path / "own").exit_code == 0
    assert dydit("sample", tmp_path / "stored", "--vae", room / "vae", *few, "--out", tmp_path / "c").exit_code == 0
    grids = {name: (tmp_path / name / "grid.png").read_bytes() for name in ("given", "b", "own", "c")}
    assert grids["given"] == grids["b"]
    assert grids["own"] == grids["c"] != grids["b"]
    record = json.loads((tmp_path / "b" / "samples.json").read_text())
    assert record["latents"] == norm.to_dict()
    assert "latents" not in json.loads((tmp_path / "own" / "samples.json").read_text())
