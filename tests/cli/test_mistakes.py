"""What the commands say to a user's mistake: one line, and nothing is left or lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.data.vae import load_vae
from dydit_cli.errors import DyditError
from dydit_cli.model.families.dit import DiT, DiTConfig
from tests.processes import dydit

MISTAKES: dict[str, tuple[str, str]] = {
    "missing path": (
        "inspect {room}/nowhere",
        "no such checkpoint; give a folder",
    ),
    "not a checkpoint": (
        "inspect {room}/profile",
        "not a checkpoint: it has no config.json",
    ),
    "a file": (
        "convert {room}/profile/profile.json {tmp}/out",
        "not a checkpoint; give a folder, a .pt or a .safetensors file",
    ),
    "convert a DyDiT": (
        "convert {room}/tuned {tmp}/out",
        "is a DyDiT already",
    ),
    "profile nothing": ("profile", "no checkpoint; name one, or show the published sizes with --table"),
    "table of a checkpoint": (
        "profile nosuch --table",
        "--table shows the published sizes and profiles nothing; leave nosuch out",
    ),
    "table into a folder": ("profile --table --out {tmp}/out", "profiles nothing; leave --out out"),
    "seed over 63 bits": (
        "sample {room}/tuned --seed 9223372036854775808 --out {tmp}/out",
        "--seed 9223372036854775808; it must be a whole number from 0 to 9223372036854775807",
    ),
    "seed of a tuning": (
        "finetune {room}/converted --seed -1 --out {tmp}/out",
        "--seed -1; it must be a whole number from 0 to",
    ),
    "resume with other weights": (
        "finetune --resume {room}/tuned --weights model",
        "--resume continues a run as it was asked for; leave --weights out",
    ),
    "profile to nowhere": ("profile {room}/tuned", "no folder to write; name one with --out DIR"),
    "unknown unit": ("profile --table --unit watt", "Invalid value for '--unit': 'watt' is not one of 'mac', 'flop'."),
    "width of a static model": (
        "profile {room}/static --width-only --out {tmp}/out",
        "is a static model, which has every head and group on; profile a DyDiT",
    ),
    "unknown class": (
        "sample {room}/tuned --classes 3,10 --out {tmp}/out",
        "the model has classes 0 to 9",
    ),
    "class that is no number": (
        "sample {room}/tuned --classes cat --out {tmp}/out",
        "'cat' is no class number",
    ),
    "too many steps": (
        "sample {room}/tuned --steps 1001 --out {tmp}/out",
        "ask for 1 to 1000",
    ),
    "too many profile steps": (
        "profile {room}/tuned --steps 1001 --out {tmp}/out",
        "ask for 1 to 1000",
    ),
    "ratio 0": (
        "finetune {room}/converted --flops-ratio 0 --out {tmp}/out",
        "over 0 and at most 1",
    ),
    "ratio over 1": (
        "finetune {room}/converted --flops-ratio 1.5 --out {tmp}/out",
        "over 0 and at most 1",
    ),
    "ratio nan": (
        "finetune {room}/converted --flops-ratio nan --out {tmp}/out",
        "over 0 and at most 1",
    ),
    "no steps": (
        "finetune {room}/converted --steps 0 --out {tmp}/out",
        "0 steps; train at least 1",
    ),
    "unknown data": (
        "finetune {room}/converted --data cats --out {tmp}/out",
        "no data set 'cats'; choose one of digits",
    ),
    "missing recipe": (
        "finetune {room}/converted --recipe x.toml --out {tmp}/out",
        "x.toml: no such recipe",
    ),
    "recipe without model": (
        "pretrain digits/finetune --out {tmp}/out",
        "the recipe has no [model] section",
    ),
    "unknown sampler": (
        "sample {room}/tuned --sampler eulers --out {tmp}/out",
        "Invalid value for '--sampler': 'eulers' is not one of 'ddpm', 'ddim', 'dpmsolver++', 'euler', 'heun', 'dopri5',",
    ),
    "sampler of another process": (
        "sample {room}/tuned --sampler euler --out {tmp}/out",
        "sampler euler is not for DiT-2x32/2, whose process is gaussian; choose one of ddpm, ddim, dpmsolver++",
    ),
    "direction of another process": (
        "convert {room}/static {tmp}/out --noise-at 1",
        "a DiT is trained by Gaussian diffusion: --noise-at is for flow matching; leave it out, or say another family",
    ),
    "wrong family": ("profile {room}/tuned --family sit --out {tmp}/out", "is a DyDiT, whose family is dit and not sit"),
    "timestep that is no direction": ("sample {room}/tuned --noise-at 3 --out {tmp}/out", "noise at t = 3; t of flow matching"),
    "unknown device": (
        "sample {room}/tuned --device tpu --out {tmp}/out",
        "no device 'tpu'; choose auto, cpu, cuda or mps",
    ),
    "absent device": (
        "sample {room}/tuned --device mps --out {tmp}/out",
        "this machine or this PyTorch has none",
    ),
    "unknown execution": (
        "sample {room}/tuned --execution fast --out {tmp}/out",
        "Invalid value for '--execution': 'fast' is not one of 'sparse', 'padded', 'masked', 'complete'.",
    ),
    "token capacity of another execution": (
        "sample {room}/tuned --token-capacity 0.5 --out {tmp}/out",
        "--token-capacity is for a DyDiT in padded execution; add --execution padded, or leave it out",
    ),
    "token capacity that is no share": (
        "sample {room}/tuned --execution padded --token-capacity 40 --out {tmp}/out",
        "token-capacity 40; it is a share of the tokens, over 0 and at most 1",
    ),
    "CUDA graphs without a GPU": (
        "sample {room}/tuned --execution padded --cuda-graphs --device cpu --out {tmp}/out",
        "cuda-graphs: the model is on cpu, which has none; use --device cuda or leave them out",
    ),
    "existing output": (
        "convert {room}/static {room}/tuned",
        "already exists; choose another name or replace it with --force",
    ),
    "existing run": (
        "finetune {room}/converted --out {room}/tuned",
        "already exists",
    ),
    "existing profile": (
        "profile {room}/tuned --out {room}/profile",
        "already exists",
    ),
    "existing samples": (
        "sample {room}/tuned --out {room}/profile",
        "already exists",
    ),
    "existing demo": (
        "demo --out {room}/profile",
        "already exists",
    ),
    "output under a file": (
        "convert {room}/static {room}/profile/profile.json/out",
        "profile.json is a file; choose another place",
    ),
    "unknown figure": (
        "visualize {room}/profile --figure pie --out {tmp}/out.png",
        "'--figure': 'pie' is not one of 'architecture', ",
    ),
    "unknown ending": (
        "visualize {room}/profile --out {tmp}/out.gif",
        "ends in .png, .svg or .pdf",
    ),
    "not a profile": (
        "visualize {room}/tuned --out {tmp}/out.png",
        "not a profile: it has no profile.json",
    ),
    "DyDiT in a static format": (
        "export {room}/tuned {tmp}/out.pt --format dit",
        "write its all-on static model with --complete, or use --format dydit",
    ),
    "unknown format": (
        "export {room}/tuned {tmp}/out --format onnx",
        "no format 'onnx'; choose one of dit, latte, lightningdit, repa, sit, dydit, diffusers, native",
    ),
    "unknown dtype": (
        "export {room}/tuned {tmp}/out --format native --dtype fp8",
        "Invalid value for '--dtype': 'fp8' is not one of 'fp32', 'bf16', 'fp16'.",
    ),
    "unknown weights": (
        "inspect {room}/tuned --weights best",
        "Invalid value for '--weights': 'best' is not one of 'ema', 'model'.",
    ),
    "unknown variant": (
        "inspect {room}/tuned --timestep-variant 127",
        "Invalid value for '--timestep-variant': '127' is not one of 'original', 'diffusers'.",
    ),
    "no classes": (
        "finetune {room}/converted --num-classes 0 --out {tmp}/out",
        "0 classes; a model has at least 1",
    ),
    "other classes than the data": (
        "finetune {room}/converted --num-classes 4 --out {tmp}/out",
        "data set digits has 10 classes and the model 4; choose data that fit the model",
    ),
    "unknown spacing": (
        "sample {room}/tuned --spacing karras --out {tmp}/out",
        "Invalid value for '--spacing': 'karras' is not one of 'linspace', 'leading', 'trailing', 'solver'.",
    ),
    "unknown command": (
        "train",
        "No such command 'train'",
    ),
    "unknown option": (
        "inspect {room}/tuned --colour",
        "No such option: --colour",
    ),
    "missing argument": (
        "convert",
        "Missing argument 'SRC'. (see dydit convert --help)",
    ),
    "not a number": (
        "sample {room}/tuned --num many --out {tmp}/out",
        "Invalid value for '--num'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line_and_leaves_nothing(room: Path, tmp_path: Path, mistake: str) -> None:
    arguments, message = MISTAKES[mistake]
    if mistake == "absent device" and torch.backends.mps.is_available():
        pytest.skip("this machine has the device that the test wants absent")
    before = snapshot(room)
    result = dydit(*(argument.format(room=room, tmp=tmp_path) for argument in arguments.split()))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    *notes, line = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all("label table" in note for note in notes)
    assert message.format(room=room) in line
    assert list(tmp_path.iterdir()) == []
    assert snapshot(room) == before


def test_a_model_that_does_not_tell_its_data_wants_them_named(tmp_path: Path) -> None:
    latents = DiTConfig(input_size=4, patch_size=2, in_channels=4, hidden_size=16, depth=1, num_heads=2, num_classes=1000)
    write(Checkpoint.of(DiT(latents), []), tmp_path / "xl")
    result = dydit("finetune", tmp_path / "xl", "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert (
        f"{tmp_path}/xl: does not tell what it was trained on; name its data with --data, such as latents:DIR" in result.stderr
    )
    assert "and a recipe with --recipe" in result.stderr
    assert "digits" not in result.stderr


def test_the_vae_of_a_pipeline_is_hinted_at(tmp_path: Path) -> None:
    (tmp_path / "pipeline" / "vae").mkdir(parents=True)
    (tmp_path / "pipeline" / "vae" / "config.json").write_text("{}")
    with pytest.raises(DyditError, match=f"^{tmp_path}/pipeline: a whole pipeline; give its VAE: {tmp_path}/pipeline/vae$"):
        load_vae(tmp_path / "pipeline", torch.device("cpu"))


def snapshot(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in folder.rglob("*")}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nobody can write: Linux's /proc")
@pytest.mark.parametrize(
    "command",
    [
        "convert {room}/static {out}",
        "finetune {room}/converted --steps 1 --batch-size 4 --out {out}",
        "sample {room}/tuned --num 1 --steps 1 --out {out}",
        "profile {room}/tuned --images 1 --steps 1 --out {out}",
        "visualize {room}/profile --out {out}.png",
        "export {room}/tuned {out}.pt --format dydit",
        "export {room}/tuned {out} --format native",
    ],
)
def test_an_unwritable_output_is_named(room: Path, command: str) -> None:
    result = dydit(*command.format(room=room, out="/proc/self/nowhere/out").split())
    assert result.exit_code == 2, result.output
    assert "cannot be written" in result.stderr.splitlines()[-1]


def test_our_own_faults_are_one_line_too(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dydit_cli.checkpoint.inspect

    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(dydit_cli.checkpoint.inspect, "inspect", broken)
    result = dydit("inspect", room / "tuned")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: internal error: ZeroDivisionError: two lines")
    assert result.stderr.count("\n") == 1


def test_force_never_replaces_a_folder_of_somebody_elses(room: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("all of it")
    for command in (
        "convert {room}/static {out}",
        "sample {room}/tuned --out {out}",
        "export {room}/tuned {out} --format native",
    ):
        result = dydit(*command.format(room=room, out=tmp_path / "thesis").split(), "--force")
        assert (result.exit_code, "a folder that dydit did not write" in result.stderr) == (2, True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "all of it"
