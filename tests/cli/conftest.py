"""What the commands' tests share: a small model, and what the commands themselves make of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.model.families.dit import DiT, DiTConfig
from tests.conftest import randomize
from tests.processes import dydit

SMALL = DiTConfig(input_size=8, patch_size=2, in_channels=1, hidden_size=32, depth=2, num_heads=4, num_classes=10)
FAST = ["--device", "cpu"]


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """static -> converted -> tuned -> profile, made by the commands themselves; tests only read it."""
    folder = tmp_path_factory.mktemp("room")
    write(Checkpoint.of(randomize(DiT(SMALL), scale=0.1), [{"action": "pretrain", "steps": 9}]), folder / "static")
    for command in (
        ["convert", folder / "static", folder / "converted"],
        ["finetune", folder / "converted", "--lambda", 0.5, "--steps", 3, "--batch-size", 8, "--out", folder / "tuned", *FAST],
        ["profile", folder / "tuned", "--out", folder / "profile", "--images", 3, "--steps", 3, *FAST],
    ):
        result = dydit(*command)
        assert result.exit_code == 0, result.output
    return folder
