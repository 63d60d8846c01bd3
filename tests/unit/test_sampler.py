"""Samplers, guidance in a part of the schedule, slices of a run, dtypes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dydit_cli.artifacts.samples import read_npz, rgb, write_npz
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.cli import console
from dydit_cli.data.vae import load_vae
from dydit_cli.devices import DTYPES
from dydit_cli.diffusion.generate import cycle_labels, generate
from dydit_cli.diffusion.options import SamplerSettings, parse_interval, spaced_timesteps
from dydit_cli.diffusion.schedule import linear_schedule
from dydit_cli.errors import DyditError
from dydit_cli.model.families.dit import DiT, DyDiT
from dydit_cli.profiling.profile import profile
from dydit_cli.sampling.options import SamplingConfig
from dydit_cli.sampling.sampler import open_sampler
from tests.conftest import TINY

LABELS = cycle_labels([0, 3, 7], 5)
SHAPE = (1, 4, 4)


class Counting:
    """A model that remembers the batch of each evaluation and the dtype that it saw."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.batches: list[int] = []
        self.dtypes: set[torch.dtype] = set()

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.batches.append(len(x))
        self.dtypes.add(x.dtype)
        out: Tensor = self.model(x, t, y)
        return out


def run(model: Any, settings: SamplerSettings, **more: Any) -> Tensor:
    return generate(model, LABELS, SHAPE, settings.for_model(TINY), null_class=10, **more)


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 250), ("ddim", 50), ("dpmsolver++", 20)])
def test_each_sampler_has_its_usual_number_of_steps(sampler: Any, steps: int) -> None:
    assert SamplerSettings(sampler).for_model(TINY).steps == steps
    assert SamplerSettings(sampler, 7).for_model(TINY).steps == 7


def test_spacing_is_the_samplers_own_unless_it_is_given() -> None:
    assert SamplerSettings(sampler="ddpm", steps=4).for_model(TINY).timesteps == [999, 666, 333, 0]
    assert SamplerSettings(sampler="dpmsolver++", steps=3).for_model(TINY).timesteps == [999, 666, 333]
    assert SamplerSettings(sampler="dpmsolver++", steps=4, spacing="linspace").for_model(TINY).timesteps == [999, 666, 333, 0]
    assert spaced_timesteps(999, "solver") == list(range(999, 0, -1))


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_solvers_are_exact_where_the_noise_is_known(sampler: Any, steps: int) -> None:
    """Data that are one point have a noise that can be told from x alone: any solver lands on the point."""
    bar = linear_schedule().alphas_cumprod.float()
    point = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)

    def knowing(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        a = bar[t].view(-1, 1, 1, 1)
        return (x - a.sqrt() * point) / (1 - a).sqrt()

    samples = run(knowing, SamplerSettings(sampler=sampler, steps=steps, cfg=1))
    assert torch.allclose(samples, point.expand_as(samples), atol=1e-3)


def test_second_order_needs_fewer_steps() -> None:
    """For Gaussian data the noise is linear in x; 20 steps of both solvers are held against 1000."""
    bar = linear_schedule().alphas_cumprod.float()

    def gaussian(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        a = bar[t].view(-1, 1, 1, 1)
        return (1 - a).sqrt() * x / (a * 4 + 1 - a)  # data of standard deviation 2

    def error(sampler: Any) -> float:
        return (run(gaussian, SamplerSettings(sampler=sampler, steps=20, cfg=1)) - exact).abs().max().item()

    exact = run(gaussian, SamplerSettings(steps=1000, cfg=1))
    assert error("dpmsolver++") < 0.2 * error("ddim")


def test_outside_the_interval_the_model_runs_once_per_image(tiny_static: DiT) -> None:
    settings = SamplerSettings(steps=4, cfg=3.0, cfg_interval=(300, 700))  # of 999, 666, 333, 0 the two in the middle
    counted = Counting(tiny_static)
    samples = run(counted, settings)
    assert counted.batches == [5, 10, 10, 5]
    assert [settings.for_model(TINY).guidance_at(t) for t in (299, 300, 700, 701)] == [1.0, 3.0, 3.0, 1.0]
    assert not torch.allclose(samples, run(tiny_static, SamplerSettings(steps=4, cfg=3.0)), atol=1e-3)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmsolver++"])
def test_the_whole_interval_is_plain_guidance_and_an_empty_one_none(tiny_static: DiT, sampler: Any) -> None:
    def drawn(cfg: float, interval: tuple[int, int]) -> Tensor:
        return run(tiny_static, SamplerSettings(sampler=sampler, steps=4, cfg=cfg, cfg_interval=interval))

    assert torch.equal(drawn(3.0, (0, 999)), run(tiny_static, SamplerSettings(sampler=sampler, steps=4, cfg=3.0)))
    assert torch.equal(drawn(3.0, (1, 2)), drawn(1.0, (0, 999)))


@pytest.mark.parametrize("interval", [(-1, 5), (0, 1000), (700, 300), (0.5, 9)])
def test_bad_intervals_are_named(interval: tuple[float, float]) -> None:
    message = f"guidance interval {interval[0]} to {interval[1]}; give two timesteps from 0 to 999, the lower first"
    with pytest.raises(DyditError, match=message):
        SamplerSettings(cfg_interval=interval).for_model(TINY)


def test_intervals_are_read_from_text() -> None:
    assert parse_interval("100, 800") == (100, 800)
    assert all(isinstance(t, int) for t in parse_interval("100, 800"))
    assert parse_interval("0.11,1") == (0.11, 1)
    for text in ("", "5", "1,2,3", "a,b", "-1,5", "nan,1"):
        with pytest.raises(DyditError, match=r"write two timesteps, for instance 100,800 or 0\.11,1"):
            parse_interval(text)


def test_a_profile_refuses_an_interval(tiny_dynamic: DyDiT, tmp_path: Path) -> None:
    write(Checkpoint.of(tiny_dynamic, []), tmp_path / "model")
    settings = SamplerSettings(steps=2, cfg_interval=(0, 500))
    with pytest.raises(DyditError, match="a profile counts the same guidance at every step"):
        profile(tmp_path / "model", tmp_path / "out", images=1, settings=settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sampler", ["ddpm", "dpmsolver++"])
def test_a_slice_of_a_run_is_that_run(tiny_static: DiT, sampler: Any) -> None:
    """Bit for bit where the batch is the same."""
    settings = SamplerSettings(sampler=sampler, steps=3)
    seen: list[int] = []
    whole = run(tiny_static, settings, seed=7, batch=2)
    part = generate(
        tiny_static, LABELS[2:], SHAPE, settings.for_model(TINY), null_class=10, seed=7, first=2, batch=2,
        on_progress=lambda progress: seen.append(progress.first),
    )  # fmt: skip
    assert torch.equal(part, whole[2:])
    assert sorted(set(seen)) == [2, 4]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.2), (torch.float16, 0.02)])
def test_the_samplers_state_stays_float32(tiny_static: DiT, dtype: torch.dtype, tolerance: float) -> None:
    settings = SamplerSettings(steps=3)
    exact = run(tiny_static, settings)
    counted = Counting(tiny_static.to(dtype))
    samples = run(counted, settings, dtype=dtype)
    assert counted.dtypes == {dtype}
    assert samples.dtype == torch.float32
    assert not torch.equal(samples, samples.to(dtype).float())
    assert (samples - exact).abs().max() < tolerance * exact.abs().max()


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_painter_runs_in_its_dtype(tiny_dynamic: DyDiT, dtype: Any) -> None:
    loaded = Checkpoint.of(tiny_dynamic, [])
    how = SamplingConfig(settings=SamplerSettings(steps=2), classes=[4, 2], dtype=dtype, device="cpu", batch=2)
    image_sampler = open_sampler(loaded, how)
    assert image_sampler.labels(1, 3).tolist() == [2, 4, 2]
    assert image_sampler.model.dtype == DTYPES[dtype]
    pixels = image_sampler.pixels(image_sampler.samples(0, 3))
    assert pixels.shape == (3, 4, 4, 1)
    assert pixels.dtype == np.uint8
    with pytest.raises(DyditError, match="class 10: the model has classes 0 to 9"):
        open_sampler(loaded, SamplingConfig(classes=[10]))
    with pytest.raises(DyditError, match="no dtype 'fp8'; choose one of fp32, bf16, fp16"):
        SamplingConfig(dtype="fp8")  # type: ignore[arg-type]


def test_npz_is_what_numpy_reads_and_the_same_bytes_again(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)

    def parts() -> Iterator[Any]:
        yield from (pixels[:3], pixels[3:6], pixels[6:])

    write_npz(tmp_path / "a.npz", pixels.shape, parts())
    write_npz(tmp_path / "b.npz", pixels.shape, [pixels])
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays.files == ["arr_0"]
        assert np.array_equal(arrays["arr_0"], pixels)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert np.array_equal(read_npz(tmp_path / "b.npz"), pixels)


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_a_damaged_shard_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "000003.npz"
    if content is None:
        np.savez(path, arr_0=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(DyditError, match=r"000003.npz: damaged shard \(.*\); delete it and run the same command again"):
        read_npz(path)


def test_grey_is_repeated_and_colour_kept() -> None:
    grey = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
    assert rgb(grey).tolist() == [[[[0] * 3, [1] * 3], [[2] * 3, [3] * 3]]]
    colour = np.zeros((1, 2, 2, 3), np.uint8)
    assert rgb(colour) is colour


def test_a_hub_vae_without_a_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DyditError) as error:
        load_vae("nobody/no-such-vae", torch.device("cpu"))
    assert "nobody/no-such-vae: no such folder here, and the Hugging Face hub does not give it (" in str(error.value)
    assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DyditError, match="not a readable AutoencoderKL"):
        load_vae(tmp_path, torch.device("cpu"))


def test_progress_counts_images(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two images of 4 steps each, said after every advance."""
    said: list[str] = []
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(console.err, "print", lambda text, **more: said.append(text))
    with console.stages() as work:
        work.begin("sample", 2, "images", per=4)
        for _ in range(4):
            work.advance(2)
    assert said == [
        "sample: 0/2 images, 0.05 images/s, 30.0 s left",
        "sample: 1/2 images, 0.05 images/s, 20.0 s left",
        "sample: 1/2 images, 0.05 images/s, 10.0 s left",
        "sample: 2/2 images, 0.05 images/s, took 40.0 s",
    ]
