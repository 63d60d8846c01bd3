"""Caching between steps against the numbers of FORA's and TaylorSeer's code: schedules, forecasts, sampling loops."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import read
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.diffusion.sampler import sample
from dydit_cli.model.backbone import Backbone
from dydit_cli.model.caching import CacheOptions
from dydit_cli.model.execution import CachedModel
from tests.reference.test_diffusion import FixedNoise
from tests.reference.test_models import largest_difference

FILES = ("caching_nocache", "caching_fora", "caching_taylor")


@dataclass(frozen=True)
class Recorded:
    """The model, and what was recorded of it; `runs` are the facts of each."""

    model: Backbone
    facts: dict[str, Any]
    io: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.io[name]

    @property
    def steps(self) -> int:
        return int(self.facts["num_steps"])


@pytest.fixture
def recorded(golden: Path) -> Recorded:
    folder = golden / "families" / "caching"
    if not folder.is_dir():
        pytest.skip(f"the reference numbers of caching are not at {folder}")
    facts = json.loads((folder / "caching.json").read_text())
    io = {name: tensor for file in FILES for name, tensor in load_file(folder / f"{file}.safetensors").items()}
    reading = LoadOptions(num_heads=facts["config"]["num_heads"], family="dit")  # weights do not tell them
    return Recorded(read(folder / facts["weights"], reading).build(), facts, io)


def options_of(name: str, facts: dict[str, Any]) -> CacheOptions:
    """Of a run's name, such as taylor.ddim.interval3.order2.cfg, and its facts."""
    if "fora" in name.split("."):
        return CacheOptions(f"fora:{facts['interval']}")
    return CacheOptions(f"taylorseer:{facts['interval']}:{facts['max_order']}")


def runs(recorded: Recorded, forced: bool) -> dict[str, dict[str, Any]]:
    return {name: facts for name, facts in recorded.facts["runs"].items() if name.startswith("forced") == forced}


def test_the_same_steps_are_computed(recorded: Recorded) -> None:
    timesteps = recorded.facts["timestep_map"][::-1]
    for name, facts in recorded.facts["runs"].items():
        schedule = options_of(name, facts).schedule(timesteps)
        assert schedule is not None
        assert list(schedule.computed) == facts["full"], name


def test_forecasts_equal_theirs_on_given_inputs(recorded: Recorded) -> None:
    """Where a sampler does not hide what is wrong: a given sequence, one label, no guidance; the first four channels."""
    named = runs(recorded, forced=True)
    assert len(named) >= 5
    for name, facts in named.items():
        model = CachedModel(recorded.model, options_of(name, facts))
        model.plan(recorded["forced.t"].tolist())
        theirs = recorded[f"{name}.out"]
        for k, (x, t) in enumerate(zip(recorded["forced.x"], recorded["forced.t"], strict=True)):
            out, routing = model(x, t[None], recorded["forced.y"], return_routing=True)
            assert (routing.forecast is None) == facts["full"][k]
            assert largest_difference(out[:, :4], theirs[k]) < 1e-5, (name, k)


def test_loops_equal_theirs(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the largest number of the run, about 1e3, of which 1e-5 is asked: 1e-4 is the promise."""
    config = recorded.model.config
    named = runs(recorded, forced=False)
    assert len(named) >= 3
    for name, facts in named.items():
        group, sampler = name.rpartition(".")[2], name.split(".")[1]
        x_T, noise, y = (recorded[f"{group}.{what}"] for what in ("x_T", "noise", "y"))
        y, theirs = y[: len(x_T)], recorded[f"{name}.traj"]
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", FixedNoise(noise, len(x_T)))
        scale = recorded.facts["cfg_scale"] if group == "cfg" else 1.0
        ready = SamplerSettings(sampler=sampler, steps=recorded.steps, cfg=scale).for_model(config)
        model = CachedModel(recorded.model, options_of(name, facts))
        assert ready.timesteps is not None
        model.plan(ready.timesteps)
        seen: list[Tensor] = []

        def watched(x: Tensor, t: Tensor, y: Tensor, model: CachedModel = model, seen: list[Tensor] = seen) -> Tensor:
            seen.append(x[:1])
            return model(x, t, y)

        out = sample(watched, x_T, y, ready, null_class=config.null_class)
        for k, (ours, their) in enumerate(zip([*seen[1:], out], theirs, strict=True)):
            assert largest_difference(ours, their) < 1e-5 * theirs.abs().max().item(), (name, k)
