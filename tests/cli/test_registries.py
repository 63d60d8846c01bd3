"""A toy of each kind, registered in its one place, and the commands that take it by its name.

A data set's is in test_data_sets, a figure's in test_figures, a study method's in test_tradeoff, a command's in
test_interface.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from dydit_cli.checkpoint.read import read
from dydit_cli.compress import methods
from dydit_cli.compress.calibration import CalibrationData
from dydit_cli.compress.criteria import Scores, criterion
from dydit_cli.diffusion.options import SAMPLERS, ReadySettings, Sampler
from dydit_cli.diffusion.sampler import Denoise, Generators
from dydit_cli.model import families
from dydit_cli.model.backbone import Backbone
from dydit_cli.model.config import RoutedConfig
from dydit_cli.model.families.dit import FAMILY as DIT
from dydit_cli.model.families.dit import DiTConfig, DyDiTConfig
from dydit_cli.model.routers import WIDTH_ROUTERS, WidthRouter
from dydit_cli.model.sites import Weights
from tests.processes import dydit

FAST = ["--device", "cpu", "--json"]
SMALL = {"input_size": 8, "patch_size": 4, "hidden_size": 24, "depth": 2, "num_heads": 2}


@dataclass(frozen=True, kw_only=True)
class ToyConfig(DiTConfig):
    kind: ClassVar[str] = "toy"
    family: ClassVar[str] = "toy"


@dataclass(frozen=True, kw_only=True)
class DyToyConfig(DyDiTConfig, ToyConfig):
    kind: ClassVar[str] = "dytoy"


@pytest.fixture
def family() -> Iterator[str]:
    """A DiT that goes by another name, and so is stored and built by another entry."""
    sizes = {"Toy-S/4": {"patch_size": 4, "hidden_size": 24, "depth": 2, "num_heads": 2}}
    own: dict[str, Any] = {"static_config": ToyConfig, "dynamic_config": DyToyConfig, "matches": lambda names: False}
    families.register(replace(DIT, name="toy", sizes=sizes, published_giga={}, **own))
    yield "toy"
    del families._registered["toy"]


def figures(*arguments: object) -> dict[str, Any]:
    result = dydit(*arguments, *FAST)
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def pretrained(out: Path, *settings: str) -> Path:
    sizes = [f"model.{name}={value}" for name, value in SMALL.items()]
    given = [part for setting in (*sizes, "train.batch_size=4", *settings) for part in ("--set", setting)]
    figures("pretrain", "digits/pretrain", "--steps", 1, "--out", out, *given)
    return out


def kind(folder: Path) -> str:
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return str(values.get("model", values)["kind"])


def test_every_command_takes_a_registered_family(family: str, tmp_path: Path) -> None:
    static, dynamic, tuned = pretrained(tmp_path / "static", "model.family=toy"), tmp_path / "dynamic", tmp_path / "tuned"
    assert kind(static) == "toy"
    assert type(read(static).config) is ToyConfig
    figures_of_conversion = dydit("convert", static, dynamic, "--json")
    assert figures_of_conversion.exit_code == 0, figures_of_conversion.output
    assert kind(dynamic) == "dytoy"
    figures("finetune", dynamic, "--flops-ratio", 0.7, "--steps", 1, "--batch-size", 4, "--calibrate", "--out", tuned)
    assert type(read(tuned).config) is DyToyConfig
    figures("prune", static, tmp_path / "pruned", "--keep", 0.5)
    assert kind(tmp_path / "pruned") == "toy"
    few = ["--steps", 2, "--out"]
    figures("sample", tuned, "--num", 2, *few, tmp_path / "samples")
    profiled = figures("profile", tuned, "--images", 1, *few, tmp_path / "profile")
    assert profiled["model"]["kind"] == "dytoy"
    assert profiled["counters_agree"]
    quick = ["--timesteps", 1, "--maps-at", 9, "--map-noises", 1, "--map-images", 1]
    figures("losses", tuned, *quick, "--out", tmp_path / "losses")
    figures("bench", tuned, "--batch", 1, "--steps", 1, "--repeats", 1)
    exported = dydit("export", tuned, tmp_path / "plain", "--format", "native", "--json")
    assert exported.exit_code == 0, exported.output
    told = dydit("sample", "Toy-S/9", "--out", tmp_path / "no").stderr
    assert "Toy-S/9" in told
    assert set(families.named_sizes()) > {"Toy-S/4", "DiT-XL/2"}
    unknown = dydit("pretrain", "digits/pretrain", "--set", "model.family=cube", "--out", tmp_path / "no")
    assert (
        unknown.stderr == "error: 'model.family': 'cube' is no family; choose one of dit, latte, lightningdit, repa, sit, toy\n"
    )


def test_weights_that_could_be_several_familys_are_read_as_the_one_asked_for(tmp_path: Path, family: str) -> None:
    """Files of the toy family have the names of a DiT's."""

    def infer(weights: Weights, hints: families.Hints) -> families.Inferred:
        found = DIT.infer(weights, hints)
        return replace(found, config=ToyConfig(**vars(found.config)))

    families.register(replace(families.families()[family], matches=DIT.matches, infer=infer))
    static = pretrained(tmp_path / "static", "model.family=toy")
    weights = (static / "model.safetensors").rename(tmp_path / "bare.safetensors")
    three = "could be of family dit or sit or toy: say which with --family dit|sit|toy"
    refused = dydit("inspect", weights, "--num-heads", 2, "--json")
    assert (refused.exit_code, refused.stderr) == (2, f"error: {weights}: {three}\n")
    for name, kind in (("toy", "toy"), ("dit", "dit")):
        told = dydit("inspect", weights, "--num-heads", 2, "--family", name, "--json")
        assert told.exit_code == 0, told.output
        assert json.loads(told.stdout)["model"]["kind"] == kind
    refused = dydit("inspect", weights, "--family", "cube")
    assert refused.stderr == f"error: {weights}: no family 'cube'; choose one of dit, latte, lightningdit, repa, sit, toy\n"


class DeepRouter(WidthRouter):
    """Two layers with a SiLU between."""

    def __init__(self, config: RoutedConfig) -> None:
        super().__init__(config)
        self.router = nn.Sequential(nn.Linear(config.hidden_size, 4), nn.SiLU(), nn.Linear(4, config.router_rows))  # type: ignore[assignment]

    @staticmethod
    def macs(config: RoutedConfig) -> int:
        return 4 * (config.hidden_size + config.router_rows)

    @property
    def last(self) -> nn.Linear:
        return self.router[2]  # type: ignore[index]


def test_every_command_takes_a_registered_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WIDTH_ROUTERS, "deep", DeepRouter)
    static, dynamic, tuned = pretrained(tmp_path / "static"), tmp_path / "dynamic", tmp_path / "tuned"
    converted = dydit("convert", static, dynamic, "--width-routing", "deep", "--json")
    assert converted.exit_code == 0, converted.output
    few = ["--steps", 1, "--batch-size", 4, "--calibrate", "--set", "routing.start=on"]
    figures("finetune", dynamic, "--flops-ratio", 0.7, *few, "--out", tuned)
    config: Any = read(tuned).config
    assert config.width_routing == "deep"
    figures("sample", tuned, "--num", 2, "--steps", 2, "--out", tmp_path / "samples")
    profiled = figures("profile", tuned, "--images", 1, "--steps", 2, "--out", tmp_path / "profile")
    assert profiled["counters_agree"]  # its MACs by formula are those that ran
    refused = dydit("convert", static, tmp_path / "no", "--width-routing", "wide")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "'linear', 'prefix', 'deep'" in refused.stderr


def test_pruning_takes_a_registered_criterion(tmp_path: Path) -> None:
    @criterion("first")
    def first(model: Backbone, data: CalibrationData) -> Scores:
        """Those with the lowest numbers are kept."""
        config = model.config
        return Scores(
            -torch.arange(config.num_heads).expand(config.depth, -1).float(),
            -torch.arange(config.mlp_hidden).expand(config.depth, -1).float(),
        )

    try:
        static = pretrained(tmp_path / "static")
        pruned = figures("prune", static, tmp_path / "pruned", "--method", "first", "--keep", 0.5)
        assert pruned["method"] == "first"
        kept = read(tmp_path / "pruned").weights["blocks.0.mlp.fc1.weight"]
        assert torch.equal(kept, read(static).weights["blocks.0.mlp.fc1.weight"][: len(kept)])
        told = dydit("prune", static, tmp_path / "no", "--method", "last").stderr
        assert "first" in told
    finally:
        del methods._methods["first"]


def little(denoise: Denoise, x: Tensor, settings: ReadySettings, generator: Generators) -> Tensor:
    """A little of the predicted noise is taken away at every step."""
    timesteps = settings.timesteps or ()
    for i, timestep in enumerate(timesteps):
        x = x - denoise(x, i, timestep)[:, : x.shape[1]] / len(timesteps)
    return x


def test_every_command_takes_a_registered_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "little", Sampler("gaussian", 3, lambda: little, spacing="trailing"))
    sampled = figures("sample", "digits-dit", "--sampler", "little", "--num", 2, "--out", tmp_path / "samples")
    assert (sampled["sampler"], sampled["steps"]) == ("little", 3)
    profiled = figures("profile", "digits-dit", "--sampler", "little", "--images", 1, "--out", tmp_path / "profile")
    assert (profiled["sampler"], profiled["steps"], profiled["spacing"]) == ("little", 3, "trailing")
    few = ["--num", 2, "--reference", "digits", "--features", "digits"]
    evaluated = figures("evaluate", "digits-dit", "--sampler", "little", *few)
    assert evaluated["protocol"]["sampler"] == "little"
    told = dydit("sample", "digits-dit", "--sampler", "much", "--out", tmp_path / "no").stderr
    assert "little" in told
