"""Flow matching: what an output amounts to, how t is drawn, how losses are weighed, and which settings are filled in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dydit_cli.diffusion.flow import FlowMatching
from dydit_cli.diffusion.generate import cycle_labels, generate, image_generators
from dydit_cli.diffusion.options import SAMPLERS, SamplerSettings, float32
from dydit_cli.diffusion.process import GaussianDiffusion, Process, process_of
from dydit_cli.diffusion.sampler import sample
from dydit_cli.diffusion.solvers import grid, normal
from dydit_cli.diffusion.timeline import DDPM_TIMELINE, FLOW_TIMELINES
from dydit_cli.errors import DyditError
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.families.sit import SiTConfig
from dydit_cli.train.objective import cosine_distance
from tests.conftest import TINY

FLOW = SiTConfig(input_size=4, patch_size=1, in_channels=1, hidden_size=24, depth=1, num_heads=3, num_classes=10)
PROCESSES = [
    FlowMatching(path, prediction, noise_at=noise_at)
    for path in ("linear", "gvp", "vp")
    for prediction in ("velocity", "score", "noise")
    for noise_at in (0, 1)
]
SOLVERS = [name for name, sampler in SAMPLERS.items() if sampler.process == "flow" and name != "dopri5"]


def pairs(count: int = 6, channels: int = 2) -> tuple[Tensor, Tensor]:
    """Images and noise, float64."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, count, channels, 3, 3, generator=generator, dtype=torch.float64)
    return x0, noise


def inside(process: Process, count: int = 6) -> Tensor:
    low, high = process.span
    return torch.linspace(low, high, count + 2, dtype=torch.float64)[1:-1]


def slope(process: FlowMatching, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """dx_t/dt by a difference."""
    step = 1e-6
    return (process.add_noise(x0, t + step, noise) - process.add_noise(x0, t - step, noise)) / (2 * step)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_an_exact_output_amounts_to_what_made_x_t(process: FlowMatching) -> None:
    x0, noise = pairs()
    t = inside(process)
    x_t, target = process.add_noise(x0, t, noise), process.target(x0, t, noise)
    exact: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(process.to_x0(target, x_t, t), x0, **exact)
    torch.testing.assert_close(process.to_noise(target, x_t, t), noise, **exact)
    torch.testing.assert_close(process.to_velocity(target, x_t, t), slope(process, x0, t, noise), rtol=1e-5, atol=1e-6)
    path, s = process.along(t, x_t)
    torch.testing.assert_close(process.to_score(target, x_t, t), -noise / path.sigma(s), **exact)
    assert process.losses(target, x0, x_t, t, noise).loss.max() < 1e-20


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_weighs_the_error_of_the_data(process: FlowMatching, gamma: float) -> None:
    """min(SNR, gamma) times the squared error of x1, however the model says it."""
    x0, noise = pairs()
    t = inside(process)
    x_t = process.add_noise(x0, t, noise)
    output = process.target(x0, t, noise) + torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    path, s = process.along(t, x_t)
    snr = (path.alpha(s) / path.sigma(s)).square().clamp(max=gamma)
    expected = (snr * (process.to_x0(output, x_t, t) - x0).square()).flatten(1).mean(dim=1)
    ours = process.losses(output, x0, x_t, t, noise, gamma).loss
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=0.0)
    # two outputs lie as far apart as an output and what it should be
    torch.testing.assert_close(process.distance(output, process.target(x0, t, noise), 2, t, gamma), ours, rtol=1e-7, atol=0.0)


def test_ddpms_min_snr_is_that_of_noise() -> None:
    ddpm, x0, noise = GaussianDiffusion(), *pairs()
    t = torch.tensor([0, 5, 100, 400, 800, 999])
    x_t = ddpm.add_noise(x0, t, noise)
    output = noise + 0.1
    bar = ddpm.schedule.alphas_cumprod[t]
    error = (ddpm.to_x0(output, x_t, t) - x0).square().flatten(1).mean(dim=1)
    expected = (bar / (1 - bar)).clamp(max=5) * error
    torch.testing.assert_close(ddpm.losses(output, x0, x_t, t, noise, 5.0).loss, expected, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("process", [*PROCESSES, GaussianDiffusion()], ids=str)
def test_timesteps_are_those_of_the_training_interval(process: Process) -> None:
    low, high = process.span
    generator = torch.Generator().manual_seed(0)
    every, drawn, spread = process.every(), process.draw(400, 4, generator), process.spread(100, generator)
    assert len(every) == 1000
    for t in (every, drawn, spread):
        assert low <= t.min() <= t.max() <= high
    # sample i is of the stratum i mod 4, and a spread has one of each equal part
    place = (drawn.double() - low) / (high + (1 if process.timeline.whole else 0) - low)
    assert ((4 * place).long().clamp(max=3) == torch.arange(400) % 4).all()
    assert (spread.diff() >= 0).all()
    grid_of = list(process.grid(7))
    assert (grid_of[0], grid_of[-1]) == (every[0].item(), every[-1].item())
    assert [process.number(t) for t in every.tolist()] == list(range(1000))
    assert all(t == float32(t) for t in grid_of)


@pytest.mark.parametrize(("path", "quartile"), [("linear", 0.33749), ("gvp", 0.29990)])
def test_lognormal_timesteps_are_stratified_by_quantiles(path: Any, quartile: float) -> None:
    """sigmoid(z), and on REPA's cosine path 2/pi atan(e^z), z a standard normal: a quarter lies under either's quartile."""
    process = FlowMatching(path, timestep_draw="lognormal")
    t = process.draw(4000, 4, torch.Generator().manual_seed(0))
    quarters = t.view(-1, 4).sort(dim=0).values
    assert quarters[-1, 0].item() == pytest.approx(quartile, abs=1e-3)
    assert quarters[-1, 1].item() == pytest.approx(0.5, abs=1e-3)
    assert quarters[0, 3].item() == pytest.approx(1 - quartile, abs=1e-3)
    assert (quarters[-1, :3] <= quarters[0, 1:]).all()


def test_a_shift_takes_small_steps_near_noise_whichever_way_t_runs() -> None:
    forward, back = FlowMatching(), FlowMatching(noise_at=1)
    points = grid(forward, 8, 0.3)
    assert points == sorted(points)
    assert points[1] - points[0] < 0.35 * (points[-1] - points[-2])
    assert [1 - t for t in grid(back, 8, 0.3)] == pytest.approx(points, abs=1e-7)
    assert grid(forward, 8, 1.0) == pytest.approx(grid(forward, 8), abs=1e-7)


@pytest.mark.parametrize("noise_at", [0, 1])
@pytest.mark.parametrize("path", ["linear", "gvp"])
@pytest.mark.parametrize("sampler", SOLVERS)
def test_solvers_draw_gaussian_data(sampler: str, path: Any, noise_at: Any) -> None:
    """Of data N(0, 1/4) the mean velocity is known, and linear in x: the ODE takes noise z to z/2, an SDE to other samples of
    the same spread."""
    config = replace(FLOW, path=path, noise_at=noise_at)
    process, spread, images = process_of(config), 0.5, 256
    assert isinstance(process, FlowMatching)

    def knowing(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        along, s = process.along(t, x)
        alpha, sigma = along.alpha(s), along.sigma(s)
        x = x / (alpha.square() * spread**2 + sigma.square())
        return process.target(alpha * spread**2 * x, t, sigma * x)

    ready = SamplerSettings(sampler, 60, cfg=1).for_model(config)
    calls: list[float] = []
    z = torch.randn(images, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    samples = sample(
        knowing, z, torch.zeros(images, dtype=torch.long), ready, null_class=10, generator=image_generators(0, 0, images),
        on_step=lambda call, t: calls.append(t),
    )  # fmt: skip
    assert calls == list(ready.timesteps or ())
    if SAMPLERS[sampler].kind == "ODE":
        assert (samples / z - spread).abs().max() < {"euler": 1 / 60, "heun": 2 / 60**2}[sampler]
    else:
        assert samples.std().item() == pytest.approx(spread, rel=0.05)
        assert torch.corrcoef(torch.stack([samples.flatten(), z.flatten()]))[0, 1] < 0.9


def test_an_sdes_noise_is_each_images_own() -> None:
    ready = SamplerSettings("euler-maruyama", 4, cfg=1).for_model(FLOW)

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return -x

    labels = cycle_labels([0], 5)
    whole = generate(model, labels, (1, 4, 4), ready, null_class=10, seed=3)
    parts = generate(model, labels, (1, 4, 4), ready, null_class=10, seed=3, batch=2)
    assert torch.equal(whole, parts)
    x = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    for source in (None, torch.Generator(), [torch.Generator(), torch.Generator()], torch.ones_like):
        assert normal(x, source).dtype == torch.float64
    assert torch.equal(normal(x, torch.ones_like), torch.ones_like(x))


def test_what_is_left_open_is_the_models() -> None:
    class All(SiTConfig):
        guided_channels = "all"

    ours = SamplerSettings().for_model(TINY)
    assert (ours.sampler, ours.steps, ours.cfg_channels, ours.spacing, ours.cfg_interval) == (
        "ddim",
        50,
        "3",
        "linspace",
        (0, 999),
    )
    assert all(isinstance(t, int) for t in (*ours.cfg_interval, *(ours.timesteps or ())))
    flow = SamplerSettings().for_model(FLOW)
    assert (flow.sampler, flow.steps, flow.cfg_channels, flow.spacing, flow.cfg_interval) == (
        "euler",
        50,
        "3",
        None,
        (0.0, 1.0),
    )
    assert SamplerSettings().for_model(All()).cfg_channels == "all"
    assert SamplerSettings(cfg_channels="3").for_model(All()).cfg_channels == "3"
    sde = SamplerSettings("euler-maruyama").for_model(FLOW)
    assert (sde.steps, sde.calls, sde.sde_form, sde.sde_norm, sde.last_step) == (250, 250, "sigma", 1.0, "mean")
    for plain in (ours, flow):
        assert (plain.time_shift, plain.sde_form, plain.sde_norm, plain.last_step) == (None,) * 4
    assert SamplerSettings("heun").for_model(FLOW).calls == 50
    assert SamplerSettings("heun", 25).for_model(replace(FLOW, noise_at=1)).calls == 49  # the last step is Euler's


def test_guidance_is_decided_by_the_timestep_that_the_model_sees() -> None:
    """0.11 is no float32: the nearest one belongs to an interval that begins there."""
    ready = SamplerSettings(cfg=2, cfg_interval=(0.11, 1)).for_model(FLOW)
    assert float32(0.11) < 0.11
    assert [ready.guidance_at(t) for t in (0.1, float32(0.11), 1.0)] == [1, 2, 2]
    assert not ready.whole_run
    assert SamplerSettings(cfg=1, cfg_interval=(0.5, 1)).for_model(FLOW).whole_run


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (TINY, {"sampler": "heun"}, "sampler heun is not for DiT-3x24/1, whose process is gaussian; choose one of ddpm, ddim,"),
        (TINY, {"time_shift": 0.3}, "time_shift 0.3 is not for sampler ddim, but for another process; leave it out"),
        (TINY, {"cfg_interval": (0.1, 0.9)}, "guidance interval 0.1 to 0.9; give two timesteps from 0 to 999"),
        (FLOW, {"steps": 0}, "0 sampling steps; ask for 1 or more"),
        (FLOW, {"cfg_interval": (0.9, 0.1)}, "guidance interval 0.9 to 0.1; give two timesteps from 0 to 1, the lower first"),
        (FLOW, {"sampler": "euler-maruyama", "last_step": "none", "steps": 0}, "needs 1 or more"),
        (FLOW, {"sampler": "euler-maruyama", "last_step": "half"}, "no last_step 'half'; choose one of mean, euler, tweedie"),
        (FLOW, {"sampler": "heun-sde", "sde_norm": -1.0}, "sde_norm -1.0; it must be over 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(config: ModelConfig, values: dict[str, Any], message: str) -> None:
    with pytest.raises(DyditError, match=message.replace("(", r"\(")):
        SamplerSettings(**values).for_model(config)


def test_the_cosine_of_a_fresh_model_has_a_bounded_gradient() -> None:
    """It predicts zeros; elsewhere length does not count, and a prediction along the target costs nothing."""
    target, _ = pairs()
    zeros = torch.zeros_like(target, requires_grad=True)
    cosine_distance(zeros, target).sum().backward()
    assert zeros.grad is not None
    assert 0 < zeros.grad.abs().max() < 100
    variance = torch.randn_like(target)
    for output, expected in ((3 * target, 0.0), (-target, 2.0), (torch.cat([target, variance], dim=1), 0.0)):
        assert cosine_distance(output, target).tolist() == pytest.approx([expected] * 6, abs=1e-9)


def test_phases_run_from_noise_to_data() -> None:
    forward, back = FLOW_TIMELINES
    assert DDPM_TIMELINE.phases() == ["999 to 750", "749 to 500", "499 to 250", "249 to 0"]
    assert forward.phases() == ["0 to 0.25", "0.25 to 0.5", "0.5 to 0.75", "0.75 to 1"]
    assert back.phases() == ["1 to 0.75", "0.75 to 0.5", "0.5 to 0.25", "0.25 to 0"]
    every = torch.tensor([0.0, 0.1, 0.25, 0.6, 1.0]).numpy()
    assert forward.phase_of(every).tolist() == [0, 0, 1, 2, 3]
    assert back.phase_of(every).tolist() == [3, 3, 2, 1, 0]
    assert DDPM_TIMELINE.phase_of(torch.tensor([0, 249, 250, 999]).numpy()).tolist() == [3, 3, 2, 0]
    assert "1: pure noise, 0: data" in back.label
