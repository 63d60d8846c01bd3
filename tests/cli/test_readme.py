"""Every command that the README and the docs show works as printed, and so does the example in every command's help."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from dydit_cli.checkpoint.export import export
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.cli.app import app, every_command
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.families import build_model
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT, DyDiTConfig
from dydit_cli.model.families.latte import LatteConfig
from dydit_cli.model.families.lightningdit import LightningDiTConfig
from dydit_cli.model.families.repa import REPAConfig
from dydit_cli.model.families.sit import SiTConfig
from tests.conftest import ROOT
from tests.json_keys import SHARED, check_keys, documented

README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs" / "pages"
# in the order of the site: what one page makes, a later one may read
PAGES = [DOCS / name for name in re.findall(r"([\w/-]+\.md)$", (ROOT / "docs/mkdocs.yml").read_text(), flags=re.MULTILINE)]
TEXT = "\n".join([README, *(page.read_text() for page in PAGES if page.exists())])
BLOCKS = re.findall(r"^```bash\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
COMMANDS = (
    "convert",
    "plan",
    "finetune",
    "encode",
    "sample",
    "evaluate",
    "profile",
    "losses",
    "visualize",
    "report",
    "inspect",
    "export",
    "push",
    "calibrate",
    "allocate",
    "bench",
    "pretrain",
    "prune",
    "study",
    "frontier",
    "count",
    "recipes ls",
    "recipes show",
    "recipes copy",
    "recipes check",
    "demo",
)

# what makes a printed command quick enough for a test, without changing what it is
QUICK = {
    "bench": ["--measure", "1", "--repeats", "1"],
    "encode": ["--size", "32"],
    "losses": ["--images", "2", "--timesteps", "3", "--map-noises", "1"],
    "finetune": [
        *("--steps", "2", "--set", "train.batch_size=8", "--set", "calibration.steps=2", "--set", "calibration.images=2"),
    ],
    "calibrate": ["--images", "2", "--steps", "2"],
    "allocate": ["--images", "2", "--steps", "2"],
    "frontier": ["--images", "2", "--steps", "2", "--cache", "none", "--reference-steps", "20"],
    "pretrain": ["--steps", "2", "--set", "train.batch_size=8"],
    "prune": ["--batches", "1", "--batch-size", "8"],
    "profile": ["--images", "2", "--steps", "2"],
    "sample": ["--num", "2", "--steps", "2"],
    "study": [
        *("--no-time", "--set", "finetune.steps=2", "--set", "evaluation.images=12", "--set", "evaluation.steps=2"),
        *("--set", "evaluation.held_out=2", "--set", "methods.dydit=[0.5]", "--set", "methods.prune=[]", "--set", "seeds=[0]"),
    ],
}


def printed(text: str) -> list[list[str]]:
    """The `dydit` command lines of a piece of text, continued lines joined, comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("dydit ")]


def commands(real: bool) -> list[list[str]]:
    """Those of the README and the docs, each once: on the published models, or on the bundled ones."""
    found = [command for block in BLOCKS for command in printed(block) if ("XL" in shlex.join(command)) == real]
    return [command for i, command in enumerate(found) if command not in found[:i]]


def run(arguments: list[str], *more: str) -> Result:
    quick = [] if "--table" in arguments else QUICK.get(arguments[0], [])
    if "--cost" in arguments:  # which chooses the steps
        quick = quick[:2]
    result = CliRunner().invoke(app, [*arguments, *quick, *more])
    assert result.exit_code == 0, f"dydit {shlex.join(arguments)}\n{result.output}"
    return result


def table_commands() -> list[list[str]]:
    """The commands in the table of checkpoint formats."""
    return [shlex.split(text)[1:] for text in re.findall(r"\| `(dydit inspect [^`]+)` \|", TEXT)]


def pictures_and_vae(images: Path, vae_folder: Path, classes: int) -> None:
    """Eight pictures in the first of so many class folders, and a random VAE that makes 32 x 32 pixels 4 x 4."""
    from diffusers import AutoencoderKL

    for name in range(classes):
        (images / f"{name:04d}").mkdir(parents=True)
    for i in range(8):
        Image.new("RGB", (40, 32), (30 * i, 0, 0)).save(images / f"{i % 2:04d}" / f"{i}.jpeg")
    blocks: dict[str, Any] = {
        "block_out_channels": (4, 4, 4, 4),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    vae: Any = AutoencoderKL(**blocks, norm_num_groups=2, latent_channels=4)
    vae.save_pretrained(vae_folder)


def stand_ins(folder: Path) -> None:
    """Small models of a published depth and width under the names that the README gives to real files, and pictures."""
    config = DiTConfig(input_size=4, patch_size=2, hidden_size=384, depth=12, num_heads=6, num_classes=1000)
    static = DiT(config).state_dict()
    torch.save(static, folder / "DiT-XL-2-256x256.pt")
    torch.save({"model": static, "ema": static, "opt": {}, "args": Namespace(model="DiT-XL/2", lr=1e-4)}, folder / "0400000.pt")
    save_file(static, folder / "dit.safetensors")
    torch.save(DyDiT(DyDiTConfig.from_static(config)).state_dict(), folder / "DyDiT-XL-2.pt")
    export(
        folder / "DiT-XL-2-256x256.pt", folder / "DiT-XL-2-256", format="diffusers", any_variant=True,
        reading=LoadOptions(family="dit"),
    )  # fmt: skip
    sizes: dict[str, Any] = {"input_size": 4, "hidden_size": 384, "depth": 12, "num_heads": 6, "num_classes": 1000}
    others: dict[str, ModelConfig] = {
        "SiT-XL-2-256.pt": SiTConfig(**sizes, patch_size=2),
        "last.pt": REPAConfig(**sizes, patch_size=2, projector_dims=(8,), projector_width=8),
        "lightningdit-xl-imagenet256.pt": LightningDiTConfig(**sizes, patch_size=1, in_channels=32),
        "ucf101.pt": LatteConfig(**sizes, patch_size=2, num_frames=2),
    }
    for name, of in others.items():
        weights = build_model(of).state_dict()
        torch.save(weights if name == "SiT-XL-2-256.pt" else {"ema": weights}, folder / name)
    pictures_and_vae(folder / "ILSVRC2012" / "train", folder / "sd-vae-ft-ema", classes=1000)


def test_the_real_models_commands_on_stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stand_ins(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **more: str(tmp_path / "DiT-XL-2-256"))
    assert len(commands(real=True)) == 11
    assert len(table_commands()) == 10
    for command in [*commands(real=True), *table_commands()]:
        run(command)


def test_the_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As printed, but for fewer steps and images."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    code = code.replace("flops_ratio=0.5", "flops_ratio=0.5, steps=2").replace("images=16", "images=1")
    exec(compile(code, "docs", "exec"), {})
    assert "timestep" in capsys.readouterr().out


def test_the_digits_walk_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    assert {command[0] for command in commands(real=False)} >= {"convert", "finetune", "profile", "visualize", "sample"}
    for command in commands(real=False):
        if command[0] != "demo":
            run(command)


def test_examples_in_the_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order each makes what the next one reads; pictures and a VAE are there. With --json, whose keys are those of
    docs/pages/reference/json.md."""
    assert {*documented(), "visualize"} - {SHARED} == set(COMMANDS) == set(map(" ".join, every_command()))
    monkeypatch.chdir(tmp_path)
    pictures_and_vae(tmp_path / "images" / "train", tmp_path / "sd-vae-ft-ema", classes=2)
    for name in COMMANDS:
        result = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200"})
        assert result.exit_code == 0
        example = re.search(r"Example:\s+(dydit .*?)\s*$", result.output, flags=re.MULTILINE)
        assert example, f"dydit {name} --help shows no example"
        if name == "allocate":
            run(["finetune", "runs/digits-dydit", "--flops-ratio", "0.3:1.0", "--out", "runs/digits-range"])
        if name == "visualize":
            run(shlex.split(example.group(1))[1:])
        elif name != "demo":
            check_keys(name, json.loads(run(shlex.split(example.group(1))[1:], "--json").stdout))


def test_two_make_targets_are_named() -> None:
    for target in ("make demo", "make test"):
        assert any(target in block for block in BLOCKS)
        done = subprocess.run(["make", "--dry-run", target.split()[1]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "venv" in done.stdout


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name)
def test_pictures_and_files_that_a_page_names_are_there(page: Path) -> None:
    """The site's own reference of commands is made with the site."""
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert link.endswith("reference/commands.md") or (page.parent / link).exists(), link


def test_ci_calls_the_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()
