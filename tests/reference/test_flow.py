"""Flow matching against what SiT's, REPA's and LightningDiT's own code computed: losses, intervals, trajectories."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import read
from dydit_cli.diffusion.flow import FlowMatching
from dydit_cli.diffusion.options import ReadySettings, SamplerSettings
from dydit_cli.diffusion.sampler import sample
from dydit_cli.diffusion.solvers import adaptive, grid
from dydit_cli.model.backbone import Backbone
from dydit_cli.model.families import build_model
from dydit_cli.model.families.sit import SiT, SiTConfig
from dydit_cli.train.objective import cosine_distance
from tests.reference.test_models import largest_difference

PATHS = {"Linear": "linear", "GVP": "gvp", "VP": "vp"}
CASES = [(path, prediction) for path in PATHS for prediction in ("velocity", "noise", "score")]


class Inputs:
    """A model that keeps what it is given, the labelled half where it is guided."""

    def __init__(self, model: Backbone, count: int) -> None:
        self.model, self.count = model, count
        self.x: list[Tensor] = []
        self.t: list[float] = []
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.x.append(x[: self.count])
        self.t.append(t[0].item())
        self.batches.append(len(x))
        out: Tensor = self.model(x, t, y)
        return out


class Run(NamedTuple):
    """A sampling run: its inputs, call by call, and what came out."""

    seen: Inputs
    ready: ReadySettings
    samples: Tensor


def sit_model(folder: Path, **flow: Any) -> SiT:
    """The weights of SiT a, as if trained with another path and prediction."""
    sizes = json.loads((folder / "sit.json").read_text())["configs"]["a"]
    return loaded(SiTConfig(**sizes, **flow), torch.load(folder / "sit_a.pt", weights_only=True))


def repa_model(folder: Path, path: Any) -> Backbone:
    """REPA a, whose t runs the other way."""
    return read(folder / "repa_a.pt", LoadOptions(num_heads=4, flow_path=path)).build()


def loaded(config: SiTConfig, weights: dict[str, Tensor]) -> SiT:
    model = build_model(config)
    model.load_state_dict(weights)
    assert isinstance(model, SiT)
    return model.eval()


@pytest.fixture
def sit(golden: Path) -> Path:
    return golden / "families" / "sit"


@pytest.fixture
def lightningdit(golden: Path) -> Path:
    return golden / "families" / "lightningdit"


@pytest.fixture
def repa(golden: Path) -> Path:
    return golden / "families" / "repa"


def process(name: str, prediction: str, weight: str = "none") -> FlowMatching:
    return FlowMatching(PATHS[name], prediction, weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_losses_equal_sits(sit: Path, name: str, prediction: str, dtype: torch.dtype) -> None:
    """All paths, predictions and weights, to 1e-6 of their size; likelihood weights reach 1e3."""
    data = load_file(sit / "sit_loss.safetensors")
    ending = "_f64" if dtype == torch.float64 else ""
    x1, x0 = data["x1"].to(dtype), data["x0"].to(dtype)
    t = data[f"{name}.{prediction}.t"]
    x_t = process(name, prediction).add_noise(x1, t, x0)
    assert largest_difference(x_t, data[f"{name}.{prediction}.xt"]) < 1e-6
    with torch.inference_mode():
        output = sit_model(sit).to(dtype)(x_t, t, data["y"])
    assert largest_difference(output, data[f"{name}.{prediction}.pred"]) < 1e-5
    if dtype == torch.float32:
        output = data[f"{name}.{prediction}.pred"]
    limit = 1e-6 if dtype == torch.float32 else 1e-10
    for weight, named in (("none", "None"), ("velocity", "velocity"), ("likelihood", "likelihood")):
        terms = process(name, prediction, weight).losses(output, x1, x_t, t, x0)
        named = "None" if prediction == "velocity" else named  # whose errors are never weighed
        theirs = data[f"{name}.{prediction}.loss.{named}{ending}"]
        assert terms.vb is None
        assert ((terms.loss - theirs).abs() / theirs).max() < limit


def test_intervals_equal_sits(sit: Path) -> None:
    """Of training, of the ODE, and of the SDE with a last step of 0.04 and without one."""
    table = json.loads((sit / "sit.json").read_text())["intervals"]
    assert len(table) == len(CASES)
    for name, prediction in CASES:
        theirs, ours = table[f"{name}.{prediction}"], process(name, prediction)
        assert ours.span == pytest.approx(theirs["train_interval"], abs=0)
        assert ours.run() == pytest.approx(theirs["ode_interval"], abs=0)
        assert ours.run(0.04) == pytest.approx(theirs["sde_interval_sigma_last0_04"], abs=0)
        assert ours.run() == pytest.approx(theirs["sde_interval_sigma_lastNone"], abs=0)


def run(model: Backbone, z: Tensor, y: Tensor, settings: SamplerSettings, noise: Tensor | None = None) -> Run:
    """Samples from z, with recorded noises where there are some."""
    ready, seen = settings.for_model(model.config), Inputs(model, len(z))
    noises: Iterator[Tensor] = iter(() if noise is None else noise)
    with torch.inference_mode():
        samples = sample(seen, z, y, ready, null_class=model.config.null_class, generator=lambda x: next(noises))
    assert next(noises, None) is None  # all were drawn
    return Run(seen, ready, samples)


def assert_same(ours: Tensor, theirs: Tensor, relative: bool = False) -> None:
    """To 1e-5: relative where the states of a score's or a noise's 1/t reach 1e4."""
    assert largest_difference(ours, theirs) < 1e-5 * (theirs.abs().max().item() if relative else 1.0)


def assert_same_way(states: Sequence[Tensor], theirs: Sequence[Tensor] | Tensor, relative: bool = False) -> None:
    for ours, state in zip(states, theirs, strict=True):
        assert_same(ours, state, relative)


@pytest.mark.parametrize("solver", ["euler", "heun2"])
@pytest.mark.parametrize("name", PATHS)
def test_the_ode_of_a_velocity_equals_sits(sit: Path, name: str, solver: str) -> None:
    data, facts = load_file(sit / "sit_sampling.safetensors"), json.loads((sit / "sit.json").read_text())["sampling"]
    key = f"ode.{name}.velocity.{solver}"
    sampler, each = ("euler", 1) if solver == "euler" else ("heun", 2)
    ours = run(sit_model(sit, path=PATHS[name]), data["z"], data["y"], SamplerSettings(sampler, 8, cfg=1))
    theirs = facts[key]
    assert ours.seen.t == ours.ready.timesteps == theirs["call_times"]
    assert ours.ready.calls == theirs["model_calls"]
    assert_same_way([*ours.seen.x[::each], ours.samples], data[f"{key}.traj"])


@pytest.mark.parametrize("key", ["Linear.noise", "Linear.score", "VP.noise"])
def test_the_ode_of_noise_and_scores_equals_sits(sit: Path, key: str) -> None:
    data, facts = load_file(sit / "sit_sampling.safetensors"), json.loads((sit / "sit.json").read_text())["sampling"]
    name, prediction = key.split(".")
    model = sit_model(sit, path=PATHS[name], prediction=prediction)
    ours = run(model, data["z"], data["y"], SamplerSettings("euler", 8, cfg=1))
    assert ours.seen.t == ours.ready.timesteps == facts[f"ode.{key}.euler"]["call_times"]
    assert_same_way([*ours.seen.x, ours.samples], data[f"ode.{key}.euler.traj"], relative=True)


def test_guided_trajectories_equal_sits(sit: Path) -> None:
    """Their state holds both halves, of which the first are the samples."""
    data = load_file(sit / "sit_sampling.safetensors")
    y = data["cfg.y"].chunk(2)[0]
    ours = run(sit_model(sit), data["z"], y, SamplerSettings("euler", 8, cfg=1.5))
    assert set(ours.seen.batches) == {4}
    assert_same_way([*ours.seen.x, ours.samples], data["ode.Linear.velocity.euler_cfg.traj"][:, :2])
    settings = SamplerSettings("euler-maruyama", 8, cfg=1.5)
    ours = run(sit_model(sit), data["z"], y, settings, data["sde_cfg.noise"][:, :2])
    assert_same(ours.seen.x[-1], data["sde_cfg.before_last"][:2])
    assert_same(ours.samples, data["sde_cfg.last"][:2])


def test_euler_from_data_to_noise_equals_sits(sit: Path) -> None:
    """The same steps the other way: a model whose t is turned round sees their grid from 1 to 0."""
    data = load_file(sit / "sit_sampling.safetensors")
    model, states = sit_model(sit), [data["z"]]
    points = grid(FlowMatching(noise_at=1), 9)
    assert points == torch.linspace(1, 0, 9).tolist()
    with torch.inference_mode():
        for t, following in pairwise(points):
            states.append(states[-1] + (following - t) * model(states[-1], torch.full((2,), t), data["y"]))
    assert_same_way(states, data["ode.Linear.velocity.euler_reverse.traj"])


def sdes(sit: Path) -> dict[str, dict[str, Any]]:
    """The recorded runs of the SDE without guidance, by name."""
    facts = json.loads((sit / "sit.json").read_text())["sampling"]
    return {key: of for key, of in facts.items() if key.startswith("sde.")}


def test_every_sde_equals_sits(sit: Path) -> None:
    """All forms, norms, last steps, predictions and both methods, one call where theirs makes two."""
    data, runs = load_file(sit / "sit_sampling.safetensors"), sdes(sit)
    assert len(runs) == 13
    for key, facts in runs.items():
        name, prediction, method, form, norm, last = re.fullmatch(
            r"sde\.(\w+)\.(\w+)\.(\w+)\.(.+?)\.([\d.]+)\.(\w+)", key
        ).groups()  # type: ignore[union-attr]
        plain = last == "None"
        settings = SamplerSettings(
            {"Euler": "euler-maruyama", "Heun": "heun-sde"}[method],
            facts["num_steps"] - plain,
            cfg=1,
            sde_form=form.lower().replace("incc", "inc"),  # type: ignore[arg-type]
            sde_norm=float(norm),
            last_step=last.lower(),  # type: ignore[arg-type]
        )
        model = sit_model(sit, path=PATHS[name], prediction=prediction)
        ours = run(model, data["z"], data["y"], settings, data["sde.noise"])
        assert ours.seen.t == ours.ready.timesteps
        theirs = data[f"{key}.traj"]
        if method == "Euler":
            points = data[f"{key}.t"].tolist()
            assert ours.seen.t == (points[:-1] if plain else points)
            assert_same_way(ours.seen.x[1:], theirs[: -2 if plain else -1], relative=prediction != "velocity")
        assert_same(ours.samples, theirs[-1], relative=prediction != "velocity")


@pytest.mark.parametrize("name", ["euler", "heun", "sde"])
def test_repas_samplers_equal_repas(repa: Path, name: str) -> None:
    """t from 1 to 0, guidance of all channels, as the family says, in an interval; their state is float64."""
    data, facts = load_file(repa / "repa_sampling.safetensors"), json.loads((repa / "repa.json").read_text())["sampling"]
    runs = {key: of for key, of in facts.items() if key.startswith(f"{name}.")}
    assert len(runs) >= 2
    for key, theirs in runs.items():
        model = repa_model(repa, {"linear": "linear", "cosine": "gvp"}[theirs["path_type"]])
        settings = SamplerSettings(
            {"sde": "euler-maruyama"}.get(name, name),
            theirs["num_steps"],
            cfg=theirs["cfg_scale"],
            cfg_interval=(theirs["guidance_low"], theirs["guidance_high"]),
            sde_form="linear" if name == "sde" else None,  # w is t, which is sigma on the linear path alone
        )
        ours = run(model, data["z"], data["y"], settings, data["sde.noise"] if name == "sde" else None)
        assert ours.seen.t == ours.ready.timesteps == pytest.approx(theirs["times"], abs=1e-7)
        assert ours.seen.batches == theirs["batch_of_each_call"]
        assert_same_way([*ours.seen.x, ours.samples], [*data[f"{key}.model_inputs"], data[f"{key}.final"]])


def test_repas_losses_equal_repas(repa: Path) -> None:
    data = load_file(repa / "repa_loss.safetensors")
    for path, ours in (("linear", FlowMatching(noise_at=1)), ("cosine", FlowMatching("gvp", noise_at=1))):
        for draw in ("uniform", "lognormal"):
            own = {name.removeprefix(f"{path}.{draw}."): tensor for name, tensor in data.items()}
            x_t = ours.add_noise(data["images"], own["t"], own["noise"])
            assert largest_difference(x_t, own["model_input"]) < 1e-6
            terms = ours.losses(own["model_output"], data["images"], x_t, own["t"], own["noise"])
            assert ((terms.loss - own["denoising_loss"]).abs() / own["denoising_loss"]).max() < 1e-6


def test_shifted_grids_equal_lightningdits(lightningdit: Path) -> None:
    data = load_file(lightningdit / "ldit_sampling.safetensors")
    for shift in (0.0, 0.3, 3.0):
        assert grid(FlowMatching(), 8, shift or None) == pytest.approx(data[f"grid.shift{shift}"].tolist(), abs=1e-7)


@pytest.mark.parametrize("guidance", ["plain", "w2.0.intervalFalse", "w10.0.intervalTrue"])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_lightningdits_euler_equals_theirs(lightningdit: Path, shift: float, guidance: str) -> None:
    """Guidance of 3 channels in 16, from t = 0.11 on with an interval; of their two halves the first are the samples."""
    data = load_file(lightningdit / "ldit_sampling.safetensors")
    facts = json.loads((lightningdit / "ldit.json").read_text())["sampling"][f"euler.shift{shift}.{guidance}"]
    settings = SamplerSettings(
        "euler",
        facts["num_steps"] - 1,
        cfg=facts["cfg"] or 1.0,
        cfg_interval=(facts["cfg_interval_start"], 1) if facts["cfg_interval"] else None,
        time_shift=shift or None,
    )
    model = read(lightningdit / "ldit_a.pt", LoadOptions(family="lightningdit")).build()
    ours = run(model, data["z"], data["y"], settings)
    key = f"euler.shift{shift}.{guidance}"
    assert ours.seen.t == ours.ready.timesteps == pytest.approx(data[f"{key}.call_times"].tolist(), abs=1e-7)
    guided = [t >= 0.11 if facts["cfg_interval"] else facts["cfg"] is not None for t in ours.seen.t]
    assert ours.seen.batches == [4 if at else 2 for at in guided]
    assert_same_way([*ours.seen.x, ours.samples], data[f"{key}.traj"][:, :2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("draw", ["uniform", "lognorm"])
def test_lightningdits_losses_equal_theirs(lightningdit: Path, draw: str, dtype: torch.dtype) -> None:
    """The velocity's, and that of the cosine."""
    data = load_file(lightningdit / "ldit_loss.safetensors")
    ours, ending = FlowMatching(), "_f64" if dtype == torch.float64 else ""
    x1, x0, t = data["x1"].to(dtype), data[f"{draw}.x0"].to(dtype), data[f"{draw}.t"]
    x_t = ours.add_noise(x1, t, x0)
    assert largest_difference(x_t, data[f"{draw}.xt"]) < 1e-6
    output = data[f"{draw}.pred"]
    if dtype == torch.float64:
        model = read(lightningdit / "ldit_a.pt", LoadOptions(family="lightningdit")).build()
        with torch.inference_mode():
            output = model.double()(x_t, t, data["y"])
    terms = ours.losses(output, x1, x_t, t, x0)
    for loss, name in ((terms.loss, "loss"), (cosine_distance(output, ours.target(x1, t, x0)), "cos_loss")):
        assert largest_difference(loss, data[f"{draw}.{name}{ending}"]) < 1e-6


def test_dopri5_is_the_recorded_solution(sit: Path) -> None:
    """The default tolerances leave 7e-4 of the tight solution, in their run and in ours; a tight one is theirs to 1e-8."""
    pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed: pip install 'dydit[ode]'")
    data = load_file(sit / "sit_sampling.safetensors")
    tight = data["ode.Linear.velocity.dopri5_tight_f64.traj"][-1]
    ours = run(sit_model(sit), data["z"], data["y"], SamplerSettings("dopri5", cfg=1))
    assert ours.ready.timesteps is None
    assert largest_difference(ours.samples, tight) < 1.5e-3
    assert largest_difference(ours.samples, data["ode.Linear.velocity.dopri5.traj"][-1]) < 1.5e-3
    model, ready = sit_model(sit).double(), ours.ready

    def denoise(x: Tensor, call: int, timestep: float, /, guide_at: float | None = None) -> Tensor:
        out: Tensor = model(x, torch.full((len(x),), timestep), data["y"])
        return out

    with torch.inference_mode():
        solved = adaptive(1e-10, 1e-10)(denoise, data["z"].double(), ready, None)
    assert largest_difference(solved, tight) < 1e-8
