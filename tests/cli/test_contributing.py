"""Every example of CONTRIBUTING.md runs as printed, and the command beside it takes what it registered."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dydit_cli.compress import methods
from dydit_cli.data.registry import SOURCES
from dydit_cli.diffusion.options import SAMPLERS
from dydit_cli.evaluate.registry import FEATURES
from dydit_cli.figures import base as figures
from dydit_cli.model import families
from dydit_cli.model.caching import CACHES
from dydit_cli.model.options import EXECUTIONS
from dydit_cli.model.routers import WIDTH_ROUTERS
from tests.processes import dydit

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
SMALL = ("input_size=8", "patch_size=4", "hidden_size=24", "depth=1", "num_heads=2")


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    figures.all_figures()
    methods.pruning_methods()
    registries: tuple[dict[str, Any], ...] = (
        families._registered, WIDTH_ROUTERS, figures._figures, methods._methods, SOURCES, SAMPLERS, CACHES, FEATURES,
        EXECUTIONS,
    )  # fmt: skip
    before = [dict(registry) for registry in registries]
    monkeypatch.syspath_prepend(str(tmp_path))
    for i, code in enumerate(EXAMPLES):
        (tmp_path / f"contributed_{i}.py").write_text(code, encoding="utf-8")
        monkeypatch.delitem(sys.modules, f"contributed_{i}", raising=False)
        importlib.import_module(f"contributed_{i}")
    assert [len(registry) - len(old) for registry, old in zip(registries, before, strict=True)] == [1] * 9
    yield
    for registry, old in zip(registries, before, strict=True):
        for name in registry.keys() - old.keys():
            del registry[name]


@pytest.mark.usefixtures("registered")
def test_the_examples_and_their_commands(tmp_path: Path) -> None:
    sizes = [part for setting in SMALL for part in ("--set", f"model.{setting}")]
    flat, cpu = ["--recipe", "digits/finetune", "--steps", 1, "--batch-size", 2, "--num-classes", 2], ["--device", "cpu"]
    static, dynamic, profile = tmp_path / "static", tmp_path / "dynamic", tmp_path / "profile"
    of_cubes = ["--set", "model.family=cube", *sizes, "--set", "train.batch_size=2"]
    for command in (
        ["pretrain", "digits/pretrain", "--steps", 1, *of_cubes, "--out", static, *cpu],
        ["convert", static, dynamic, "--width-routing", "deep"],
        ["prune", static, tmp_path / "pruned", "--method", "first", *cpu],
        ["finetune", static, "--data", "grey", *flat, "--out", tmp_path / "tuned", *cpu],
        ["sample", dynamic, "--sampler", "little", "--num", 1, "--out", tmp_path / "samples", *cpu],
        ["sample", dynamic, "--cache", "mean:3", "--steps", 6, "--num", 1, "--out", tmp_path / "cached", *cpu],
        ["sample", dynamic, "--execution", "autocast", "--steps", 1, "--num", 1, "--out", tmp_path / "autocast", *cpu],
        ["evaluate", "digits:held-out", "--features", "thumbnail", "--reference", "digits", *cpu],
        ["profile", dynamic, "--images", 1, "--steps", 2, "--out", profile, *cpu],
        ["visualize", profile, "--figure", "ratio", "--out", tmp_path / "ratio.png", "--data"],
    ):  # fmt: skip
        result = dydit(*command)
        assert result.exit_code == 0, result.output


def test_the_files_that_it_names_are_there() -> None:
    for path in re.findall(r"`((?:dydit_cli|tests)/[\w/]+(?:\.py|/))`", TEXT):
        assert (Path(__file__).parents[2] / path).exists(), path
