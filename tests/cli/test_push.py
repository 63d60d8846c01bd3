"""`dydit push` to a small hub on the loopback, and reading what it pushed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.export import export
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.model.families.dit import DiT, DiTConfig
from tests import hub
from tests.cli.conftest import FAST
from tests.conftest import randomize
from tests.processes import dydit

# within the hub's client, where it uploads a file
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

LICENSE = ["--license", "apache-2.0"]


@pytest.fixture(scope="module")
def server() -> Iterator[hub.Hub]:
    with hub.running() as running:
        yield running


@contextmanager
def logged_in(server: hub.Hub, token: str = hub.TOKEN) -> Iterator[None]:
    """This process's client of the hub asks `server`, without the transfer that is the hub's own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        patched.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
        patched.setenv("HF_TOKEN", token)
        yield


@pytest.fixture(scope="module")
def pushed(server: hub.Hub, room: Path) -> dict[str, object]:
    with logged_in(server):
        done = dydit("push", room / "tuned", "me/tuned", *LICENSE, "--with", room / "profile", "--private", "--json")
    assert done.exit_code == 0, done.output
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_the_hub_holds_what_is_reported(server: hub.Hub, room: Path, pushed: dict[str, object]) -> None:
    held = {path: content for (repo, path), content in server.files.items() if repo == "me/tuned"}
    assert pushed["files"] == {path: len(content) for path, content in sorted(held.items())}
    assert pushed["url"] == f"{server.url}/me/tuned/commit/{hub.COMMIT}"
    assert set(held) == {
        *("README.md", "config.json", "model.safetensors"),
        *(f"figures/{name}.png" for name in ("architecture", "flops", "tokens")),
    }
    assert held["model.safetensors"] == (room / "tuned" / "model.safetensors").read_bytes()
    assert held["README.md"].decode() == pushed["card"]
    assert server.private["me/tuned"]
    assert all(content.startswith(b"\x89PNG") for path, content in held.items() if path.endswith(".png"))


def test_the_card_says_what_it_is_and_how_to_load_it(room: Path, pushed: dict[str, object]) -> None:
    card = str(pushed["card"])
    head: Any = ModelCard(card).data
    assert (head.license, head.library_name) == ("apache-2.0", "dydit")
    assert {"dit", "dydit", "diffusion"} <= set(head.tags)
    ratio = json.loads((room / "profile" / "profile.json").read_text())["ratio"]
    for text in (
        "# DiT-2x32/2",
        "## How it was made",
        "It was brought to 0.5 of the static model's FLOPs.",
        'dydit_cli.load("me/tuned", execution="sparse")',
        "dydit sample me/tuned --num 8 --out samples",
        "## Licence\n\n`apache-2.0`, as whoever pushed it says.",
        f"ratio {ratio:.4f}",
        "![What runs at which timestep](figures/architecture.png)",
    ):
        assert text in card
    assert str(Path.home()) not in card
    for path in re.findall(r"\]\((figures/[^)]+)\)", card):
        assert path in str(pushed["files"])


def test_what_was_pushed_is_read_by_its_name(server: hub.Hub, room: Path, pushed: dict[str, object], tmp_path: Path) -> None:
    """By the lines of Python in its card, in a folder of its own."""
    (python,) = re.findall(r"^```python\n(.*?)^```", str(pushed["card"]), flags=re.MULTILINE | re.DOTALL)
    code = f"{python}\nimport sys, torch\ntorch.save(dict(model.state_dict()), sys.argv[1])"
    own = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "HF_TOKEN": hub.TOKEN, "HF_HUB_DISABLE_XET": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | own
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "weights.pt"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    got, here = torch.load(tmp_path / "weights.pt"), read(room / "tuned").weights
    names = {name.removeprefix("model."): weight for name, weight in got.items()}
    assert names.keys() == here.keys()
    assert all(torch.equal(names[name], weight) for name, weight in here.items())


def test_a_hub_that_refuses_is_one_line(server: hub.Hub, room: Path) -> None:
    before = dict(server.files)
    with logged_in(server, token="hf_another"):
        done = dydit("push", room / "static", "me/other", *LICENSE)
    assert (done.exit_code, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: me/other: the Hugging Face hub does not take it (")
    assert last.endswith("; log in with `hf auth login`, or set HF_TOKEN to a token that may write there")
    assert server.files == before


def dry(*words: object) -> dict[str, str]:
    done = dydit("push", *words, *LICENSE, "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    told: dict[str, str] = json.loads(done.stdout)
    assert told["url"] is None
    return told


def test_any_format_and_figures_of_any_kind(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DiTConfig(input_size=4, patch_size=2, hidden_size=24, depth=1, num_heads=2, num_classes=7)
    write(Checkpoint.of(randomize(DiT(config)), [{"action": "train", "source": str(tmp_path / "here")}]), tmp_path / "latents")
    export(tmp_path / "latents", tmp_path / "latents.pt", format="dit")
    told = dry(tmp_path / "latents.pt", "me/latents", "--family", "dit", "--num-heads", 2, "--input-size", 4)
    for text in (
        "--num 8 --out samples --vae VAE",
        "DiTPipeline(transformer=dydit_cli.as_diffusers(model)",
        'load("me/latents")',
    ):
        assert text in told["card"]
    monkeypatch.chdir(tmp_path)
    assert "train: source here" in dry(tmp_path / "latents", "me/latents")["card"]

    for command in (
        ["sample", room / "tuned", "--num", 4, "--steps", 2, "--out", "samples"],
        ["evaluate", "samples", "--features", "digits", "--out", "evaluation.json"],
        ["profile", room / "tuned", "--images", 2, "--steps", 2, "--out", "profile"],
    ):
        made = dydit(*command, *FAST)
        assert made.exit_code == 0, made.output
    shows = ["evaluation.json", "samples", "profile", room / "profile"]
    told = dry(room / "tuned", "me/tuned", *(part for path in shows for part in ("--with", path)))
    head: Any = ModelCard(told["card"]).data
    found = {result.metric_type: result.metric_value for result in head.eval_results}
    figures = json.loads(Path("evaluation.json").read_text())
    assert found["frechet"] == figures["frechet"]
    assert {"figures/samples.png", "figures/tokens.png", "figures/tokens-2.png"} <= set(told["files"])
    assert "- sampler: ddim" in told["card"]
    shown = dydit("push", room / "tuned", "me/tuned", *LICENSE, "--dry-run").stdout
    assert "not pushed: README.md (" in shown
    assert "# DiT-2x32/2" in shown


def test_figures_and_a_front_beside_the_checkpoint_go_along(room: Path, tmp_path: Path) -> None:
    few = ["--images", 2, "--steps", 2, "--cache", "none", "--reference-steps", 3, "--no-time"]
    assert dydit("convert", room / "static", tmp_path / "own").exit_code == 0
    front = dydit("frontier", tmp_path / "own", *few, "--store", "--out", tmp_path / "front", *FAST)
    assert front.exit_code == 0, front.output
    card = dydit("profile", tmp_path / "own", "--images", 1, "--steps", 2, "--card", "--out", tmp_path / "profile", *FAST)
    assert card.exit_code == 0, card.output
    told = dry(tmp_path / "own", "me/own")
    assert "frontier.json" in told["files"]
    assert "- active: 100.0 % of heads" in told["card"]
    assert told["card"].count("## Figures") == 1


MISTAKES = {
    "{room}/tuned tuned": "tuned: no repository of the hub's; write OWNER/NAME",
    "{room}/tuned me/a/b": "me/a/b: no repository of the hub's; write OWNER/NAME",
    "{room}/nowhere me/a": "no such checkpoint; give a folder",
    "{room}/tuned me/a --with {room}/nowhere": "not found; name a folder that dydit wrote",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(words: str, room: Path) -> None:
    done = dydit("push", *(word.format(room=room) for word in words.split()), *LICENSE)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert MISTAKES[words] in done.stderr


def test_a_licence_has_to_be_said(room: Path) -> None:
    assert "Missing option '--license'" in dydit("push", room / "tuned", "me/a").stderr
    vague = dydit("push", room / "tuned", "me/a", "--license", "do what you like")
    assert vague.stderr.startswith("error: licence 'do what you like': write one of the hub's identifiers, such as apache-2.0")
