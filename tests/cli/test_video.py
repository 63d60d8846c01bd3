"""Every command on a model of videos, from folders of frames to samples and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dydit_cli.artifacts.profile import Profile
from dydit_cli.artifacts.samples import SampleFolder
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.data.latents import LatentData
from dydit_cli.figures.maps import displayable
from dydit_cli.model.families.dit import DiT, DiTConfig
from dydit_cli.model.families.latte import DyLatteConfig, Latte, LatteConfig
from dydit_cli.train.recipe import ModelRecipe
from tests.conftest import randomize
from tests.processes import dydit

CONFIG = LatteConfig(
    input_size=4, patch_size=2, in_channels=4, hidden_size=24, depth=2, num_heads=3, num_classes=2, num_frames=3
)
FAST = ["--device", "cpu"]
FEW = ["--recipe", "imagenet/base", "--steps", 2, "--batch-size", 4, *FAST]
LENGTHS = {"run": (5, 3, 4), "jump": (2, 6)}  # frames of each class's clips; one is too short


def ok(*command: object) -> str:
    result = dydit(*command)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*command: object) -> str:
    result = dydit(*command)
    assert result.exit_code == 2, result.output
    return result.stderr.strip().splitlines()[-1]  # before it may stand what was found


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """frames, vae -> latents; static -> converted -> tuned -> profile, made by the commands; tests only read it."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("videos")
    for seed, (name, lengths) in enumerate(LENGTHS.items()):
        for clip, length in enumerate(lengths):
            place = folder / "frames" / name / f"clip{clip}"
            place.mkdir(parents=True)
            pixels = np.random.default_rng(10 * seed + clip).integers(0, 256, (length, 9, 10, 3), dtype=np.uint8)
            for i, frame in enumerate(pixels):
                Image.fromarray(frame).save(place / f"frame_{i:04d}.png")
    torch.manual_seed(0)
    vae: Any = AutoencoderKL(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2, latent_channels=4,
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    write(Checkpoint.of(randomize(Latte(CONFIG), scale=0.1), []), folder / "static")
    data = f"latents:{folder / 'latents'}"
    encode = ["encode", folder / "frames", folder / "latents", "--vae", folder / "vae", "--size", 8, "--frames", 3]
    ok(*encode, "--shard-size", 3, *FAST)
    ok("convert", folder / "static", folder / "converted")
    ok("finetune", folder / "converted", "--lambda", 0.6, "--data", data, *FEW, "--out", folder / "tuned")
    ok("profile", folder / "tuned", "--out", folder / "profile", "--images", 2, "--steps", 2, *FAST)
    return folder


def test_clips_are_encoded_frame_by_frame(room: Path, tmp_path: Path) -> None:
    data = LatentData(room / "latents")
    assert (len(data), data.frames, data.class_names) == (4, 3, ("jump", "run"))
    assert [(one.file, one.reason) for one in data.skipped] == [("jump/clip0", "2 frames")]
    for name in LENGTHS:  # the same pictures, each by itself, in the same order
        for clip in sorted((room / "frames" / name).iterdir()):
            for i, frame in enumerate(sorted(clip.iterdir())):
                place = tmp_path / "images" / name / f"{clip.name}-{i}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(frame.read_bytes())
    ok("encode", tmp_path / "images", tmp_path / "out", "--vae", room / "vae", "--size", 8, *FAST)
    frames, _ = LatentData(tmp_path / "out").take(torch.arange(20))
    clips, labels = data.take(torch.arange(4))
    assert labels.tolist() == [0, 1, 1, 1]
    starts = [2, 8, 13, 16]  # of each clip among all frames
    assert torch.allclose(clips, torch.stack([frames[start : start + 3] for start in starts]), atol=1e-5)


def test_frames_in_a_row_are_drawn_by_seed_and_index(room: Path) -> None:
    whole = LatentData(room / "latents")
    one = LatentData(room / "latents", frames=1)
    six = one._shards[0].read("mean", one._shards[0].rows(0), 0) * one.index.scaling_factor  # 6 C S S
    std = one._shards[0].read("std", one._shards[0].rows(0), 0) * one.index.scaling_factor
    starts = list[int]()
    for seed in range(0, 80, 2):  # even: not mirrored
        taken = whole.take(torch.tensor([0]), torch.tensor([seed]))[0][0]  # 3 C S S
        noise = [((taken - six[i : i + 3]) / std[i : i + 3]).square().mean().item() for i in range(4)]
        starts.append(int(np.argmin(noise)))
        assert noise[starts[-1]] < 2
    assert set(starts) == {0, 1, 2, 3}
    index, seeds = torch.tensor([0, 2, 3, 0]), torch.tensor([7, 7, 8, 9])
    together, _ = whole.take(index, seeds)
    for i in range(4):
        assert torch.equal(whole.take(index[i : i + 1], seeds[i : i + 1])[0][0], together[i])


def test_a_clip_with_a_damaged_frame_is_left_out(room: Path, tmp_path: Path) -> None:
    for file in (room / "frames").rglob("*.png"):
        place = tmp_path / "frames" / file.relative_to(room / "frames")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    (tmp_path / "frames" / "run" / "clip0" / "frame_0002.png").write_bytes(b"no picture")
    ok("encode", tmp_path / "frames", tmp_path / "out", "--vae", room / "vae", "--size", 8, "--frames", 3, *FAST)
    left, whole = LatentData(tmp_path / "out"), LatentData(room / "latents")
    assert [one.file for one in left.skipped] == ["jump/clip0", "run/clip0/frame_0002.png"]
    ours, theirs = left.take(torch.arange(3))[0], whole.take(torch.tensor([0, 2, 3]))[0]
    assert torch.allclose(ours, theirs, atol=1e-5)  # in other batches, whose last bits may differ


def test_the_tuned_model_keeps_its_family(room: Path) -> None:
    tuned = read(room / "tuned")
    assert tuned.config == DyLatteConfig.from_static(CONFIG, token_router_reduction=16)
    shown = ok("inspect", room / "tuned")
    assert "DyLatte (dynamic)" in shown
    assert "12: patches of 2 x 2 in 3 x 4 x 4 x 4" in shown
    assert "latents:" in (room / "tuned" / "README.md").read_text()


def test_samples_are_strips_and_gifs(room: Path, tmp_path: Path) -> None:
    drawn = ["sample", room / "tuned", "--num", 2, "--steps", 2, "--vae", room / "vae", *FAST]
    ok(*drawn, "--out", tmp_path / "pictures")
    ok(*drawn, "--npz", "--shard-size", 1, "--out", tmp_path / "array")
    pixels = np.load(tmp_path / "array" / "samples.npz")["arr_0"]
    assert pixels.shape == (2, 3, 8, 8, 3)
    folder = SampleFolder.read(tmp_path / "pictures")
    assert folder.record["frames"] == 3
    assert sorted(path.name for path in folder.folder.iterdir() if path.suffix != ".json") == [
        "00000-class0.gif", "00000-class0.png", "00001-class1.gif", "00001-class1.png", "grid.png",
    ]  # fmt: skip
    strip = folder.first(1)[0]
    for i in range(3):  # 8 pixels enlarged to 64, a margin of 2 around each
        frame = strip[2:66, 2 + 66 * i : 66 + 66 * i]
        assert np.array_equal(frame[::8, ::8], pixels[0, i])
    with Image.open(folder.folder / "00001-class1.gif") as moving:
        assert moving.n_frames == 3  # type: ignore[attr-defined]
    assert SampleFolder.read(tmp_path / "array").first(2)[1].shape == (8, 24, 3)
    ok("visualize", tmp_path / "array", "--figure", "samples", "--out", tmp_path / "samples.png")
    message = refused("evaluate", tmp_path / "pictures", "--reference", tmp_path / "pictures", *FAST)
    assert "videos of 3 frames; the distances here are of images" in message


def test_profiles_and_figures(room: Path, tmp_path: Path) -> None:
    profile = Profile.read(room / "profile")
    assert profile.summary["counters_agree"]
    assert profile.record.tokens.shape[-1] == CONFIG.num_tokens == 12
    assert profile.samples.shape == (2, 3, 4, 4, 4)
    for figure in ("tokens", "architecture", "flops"):
        ok("visualize", room / "profile", "--figure", figure, "--out", tmp_path / f"{figure}.png")
    ok("visualize", room / "profile", "--figure", "tokens", "--data", "--out", tmp_path / "tokens.svg")
    table = pd.read_csv(tmp_path / "tokens.csv")
    assert table.groupby("image")["frame"].nunique().tolist() == [3, 3]
    ok("visualize", room / "profile", "--figure", "architecture", "--out", tmp_path / "architecture.svg")
    drawn = (tmp_path / "architecture.svg").read_text()
    assert "0 spatial" in drawn
    assert "1 temporal" in drawn
    ok("report", room / "tuned", room / "profile", "--out", tmp_path / "report.html")


def test_a_strip_shows_its_frames_from_left_to_right() -> None:
    video = np.linspace(-1, 1, 3 * 1 * 2 * 2, dtype=np.float32).reshape(3, 1, 2, 2)
    assert np.allclose(displayable(video), np.concatenate([displayable(frame) for frame in video], axis=1))


def test_losses_have_a_map_of_each_frame(room: Path, tmp_path: Path) -> None:
    measured = ["losses", room / "static", room / "tuned", "--data", f"latents:{room / 'latents'}", "--out", tmp_path / "l"]
    ok(*measured, "--timesteps", 3, "--images", 3, "--maps-at", "100,900", *FAST)
    with np.load(tmp_path / "l" / "losses.npz") as arrays:
        assert arrays["patches"].shape == (2, 3, 3, 2, 2)
        assert np.allclose(arrays["mse"].shape, (2, 3, 3))
    for figure in ("loss-gap", "loss-maps"):
        ok("visualize", tmp_path / "l", "--figure", figure, "--out", tmp_path / f"{figure}.png")


def test_the_other_commands_run(room: Path, tmp_path: Path) -> None:
    data = ["--data", f"latents:{room / 'latents'}"]
    ok("prune", room / "static", tmp_path / "pruned", "--keep", 0.6, "--method", "magnitude")
    ok("finetune", tmp_path / "pruned", *data, *FEW, "--out", tmp_path / "pruned-tuned")
    assert read(tmp_path / "pruned-tuned").config.frames == 3
    few = ["--batch", 1, "--steps", 4, "--measure", 1, "--repeats", 1, "--json", *FAST]
    timed = json.loads(ok("bench", room / "tuned", *few))
    assert timed["model"] == str(room / "tuned")
    ok("export", room / "static", tmp_path / "latte.pt", "--format", "latte")
    public = torch.load(tmp_path / "latte.pt", weights_only=True)
    assert public.keys() == {"ema"}
    found = dydit("inspect", tmp_path / "latte.pt", "--num-heads", 3, "--json")
    assert json.loads(found.stdout)["model"] == CONFIG.to_dict()


def test_a_model_of_videos_is_pretrained(room: Path, tmp_path: Path) -> None:
    sizes = {name: value for name, value in CONFIG.to_dict().items() if name in (*ModelRecipe.model_fields, "num_frames")}
    lines = [f"data = {json.dumps('latents:' + str(room / 'latents'))}", "[model]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in {"family": "latte", **sizes}.items()]
    (tmp_path / "videos.toml").write_text("\n".join([*lines, "[train]", "steps = 2", "batch_size = 4"]))
    ok("pretrain", tmp_path / "videos.toml", "--out", tmp_path / "run", *FAST)
    assert read(tmp_path / "run").config == CONFIG
    (tmp_path / "images.toml").write_text((tmp_path / "videos.toml").read_text().replace('"latte"', '"dit"'))
    message = refused("pretrain", tmp_path / "images.toml", "--out", tmp_path / "no", *FAST)
    assert "'model.num_frames': a DiT has none; it has input_size" in message


def test_what_does_not_fit_is_one_line(room: Path, tmp_path: Path) -> None:
    write(Checkpoint.of(Latte(LatteConfig(**{**CONFIG.__dict__, "num_frames": 7})), []), tmp_path / "longer")
    image = DiTConfig(input_size=4, patch_size=2, in_channels=4, hidden_size=24, depth=2, num_heads=3, num_classes=2)
    write(Checkpoint.of(DiT(image), []), tmp_path / "image")
    data = f"latents:{room / 'latents'}"
    for model, message in (
        ("longer", "has 3 frames and the model 7; choose data that fit the model"),
        ("image", "has videos of 3 frames and the model takes images; choose data that fit the model"),
    ):
        assert message in refused("finetune", tmp_path / model, "--data", data, *FEW, "--out", tmp_path / "no")
    ok("encode", room / "frames", tmp_path / "pictures", "--vae", room / "vae", "--size", 8, *FAST)
    pictures = ["finetune", room / "static", "--data", f"latents:{tmp_path / 'pictures'}", *FEW, "--out", tmp_path / "no"]
    assert "has images and the model takes videos of 3 frames" in refused(*pictures)
    short = ["encode", room / "frames", tmp_path / "short", "--vae", room / "vae", "--size", 8, "--frames", 9, *FAST]
    assert "none of its 5 folders of frames has 9 or more, for instance jump/clip0 (2 frames)" in refused(*short)
    tome = ["sample", room / "static", "--tome", 0.5, "--vae", room / "vae", "--out", tmp_path / "no", *FAST]
    assert "tome 0.5: it merges tokens of images, and this model makes videos; leave tome out" in refused(*tome)


def test_a_model_without_classes(room: Path, tmp_path: Path) -> None:
    static = LatteConfig(**{**CONFIG.__dict__, "num_classes": 0})
    write(Checkpoint.of(randomize(Latte(static), scale=0.1), []), tmp_path / "static")
    ok("convert", tmp_path / "static", tmp_path / "dynamic")
    data = ["--data", f"latents:{room / 'latents'}"]
    ok("finetune", tmp_path / "dynamic", "--lambda", 0.6, *data, *FEW, "--out", tmp_path / "tuned")
    drawn = ["sample", tmp_path / "tuned", "--num", 2, "--steps", 2, "--vae", room / "vae", "--out", tmp_path / "out", *FAST]
    assert "the model has no classes; leave it out" in refused(*drawn, "--classes", "0")
    ok(*drawn)
    assert len(list((tmp_path / "out").glob("*-class0.png"))) == 2
    tuned = ["finetune", tmp_path / "dynamic", "--num-classes", 4, *data, *FEW, "--out", tmp_path / "no"]
    assert "4 classes for a model without any, which ignores labels; leave --num-classes out" in refused(*tuned)
    assert "none: labels count for nothing" in ok("inspect", tmp_path / "tuned")
