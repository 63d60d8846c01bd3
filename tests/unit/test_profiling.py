"""Recording a sampling run, counting it, writing it, drawing it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dydit_cli.artifacts.comparison import Comparison
from dydit_cli.artifacts.profile import Profile, phase_table
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.diffusion.generate import cycle_labels, generate
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.diffusion.timeline import DDPM_TIMELINE
from dydit_cli.errors import DyditError
from dydit_cli.figures.base import all_figures
from dydit_cli.figures.maps import displayable
from dydit_cli.figures.tokens import token_share
from dydit_cli.figures.visualize import visualize
from dydit_cli.model import macs as analytic
from dydit_cli.model.families.dit import DiT, DyDiT, DyDiTConfig
from dydit_cli.pixels import make_grid, picture, to_pixels
from dydit_cli.profiling.profile import names_of, profile
from dydit_cli.profiling.width import profile_width
from tests.conftest import TINY

SHORT = SamplerSettings(steps=4)


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_dynamic: DyDiT) -> Path:
    write(Checkpoint.of(tiny_dynamic, []), tmp_path / "dynamic")
    return tmp_path / "dynamic"


@pytest.fixture
def profiled(checkpoint: Path, tmp_path: Path) -> Profile:
    return profile(checkpoint, tmp_path / "profile", images=5, settings=SHORT, batch=2, device="cpu")


def test_record_holds_what_the_model_did(profiled: Profile, tiny_dynamic: DyDiT) -> None:
    """The first step sees the seed's noise: the masked model on it gives the same masks."""
    record = profiled.record
    assert record.timesteps.tolist() == SHORT.for_model(TINY).timesteps
    assert record.heads.shape == record.groups.shape == (4, 3, 3)
    assert record.tokens.shape == (4, 3, 2, 5, 16)
    seen: list[torch.Tensor] = []

    def spy(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return tiny_dynamic(x, t, y)

    labels = cycle_labels(list(range(10)), 5)
    generate(spy, labels, (1, 4, 4), SamplerSettings(steps=1).for_model(TINY), null_class=10)
    null = torch.full((5,), 10)
    _, routing = tiny_dynamic(seen[0], torch.full((10,), 999), torch.cat([labels, null]), return_routing=True)
    first = record.routing(0)
    for name in ("heads", "groups", "tokens"):
        assert torch.equal(getattr(first, name), getattr(routing, name))


def test_table_counts_the_record(profiled: Profile, tiny_dynamic: DyDiT) -> None:
    table = profiled.table
    for step in range(4):
        macs = analytic.total_macs(profiled.record.routing(step), tiny_dynamic.config)
        assert table.loc[step, "dynamic_macs"] == macs.double().mean().item()
    parts = table.filter(regex="^(attention|mlp|routers|modulation|norms|embed_and_head)_macs$")
    assert parts.sum(axis=1).to_list() == pytest.approx(table["dynamic_macs"].to_list())
    summary = profiled.summary
    assert summary["ratio"] == pytest.approx(summary["macs_dynamic"] / summary["macs_static"])
    assert summary["macs_static"] == analytic.static_macs(TINY)
    assert 0.1 < summary["ratio"] < 1


def test_phases_average_over_quarters_of_the_schedule() -> None:
    table = pd.DataFrame({"step": range(4), "timestep": [999, 750, 749, 0], "ratio": [1.0, 0.5, 0.25, 0.75]})
    phases = phase_table(table, DDPM_TIMELINE)
    assert phases["phase"].to_list() == ["999 to 750", "749 to 500", "249 to 0"]
    assert phases["ratio"].to_list() == [0.75, 0.25, 0.75]
    assert phases["steps"].to_list() == [2, 1, 1]


def test_profile_on_disk_round_trips_and_is_deterministic(profiled: Profile, checkpoint: Path, tmp_path: Path) -> None:
    back = Profile.read(tmp_path / "profile")
    assert back.summary == profiled.summary
    assert np.array_equal(back.record.tokens, profiled.record.tokens)
    assert np.array_equal(back.samples, profiled.samples)
    pd.testing.assert_frame_equal(back.table, profiled.table)
    pd.testing.assert_frame_equal(back.blocks, pd.read_csv(tmp_path / "profile" / "blocks.csv"))
    pd.testing.assert_frame_equal(back.images, pd.read_csv(tmp_path / "profile" / "images.csv"))
    profile(checkpoint, tmp_path / "again", images=5, settings=SHORT, batch=2, device="cpu")
    for name in Profile.files:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "profile" / name).read_bytes()


def test_batch_size_changes_nothing(checkpoint: Path, profiled: Profile) -> None:
    whole = profile(checkpoint, images=5, settings=SHORT, batch=64, device="cpu")
    assert np.allclose(whole.samples, profiled.samples, atol=1e-4)
    assert np.array_equal(whole.record.heads, profiled.record.heads)


def test_without_guidance_there_is_one_half(checkpoint: Path) -> None:
    result = profile(checkpoint, images=3, settings=SamplerSettings(steps=2, cfg=1), device="cpu")
    assert result.record.tokens.shape[2] == 1
    assert result.summary["forwards_per_image"] == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"timesteps.csv": None}, "not a profile: it has no timesteps.csv; make one with: dydit profile"),
        ({"profile.json": "{}"}, "profile.json: not a profile: its format is None; make one with: dydit profile"),
        ({"profile.json": "{"}, "damaged profile"),
        (
            {"profile.json": '{"format": "dydit-profile", "format_version": 1}'},
            "profile of version 1, this dydit reads 2",
        ),
        ({"routing.npz": "zip"}, "damaged profile"),
        ({"timesteps.csv": ""}, "damaged profile"),
    ],
)
def test_damaged_profiles_are_named(profiled: Profile, tmp_path: Path, damage: dict[str, str | None], message: str) -> None:
    for name, text in damage.items():
        path = tmp_path / "profile" / name
        path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DyditError) as error:
        Profile.read(tmp_path / "profile")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_static_model_does_everything(tmp_path: Path, tiny_static: DiT) -> None:
    write(Checkpoint.of(tiny_static, []), tmp_path / "static")
    result = profile(tmp_path / "static", tmp_path / "out", images=2, settings=SHORT, device="cpu")
    assert result.summary["ratio"] == result.summary["active_tokens_share"] == 1
    assert result.summary["counters_agree"]
    assert result.summary["executed_macs"] == {"steps": 2 * 2 * 4 * analytic.static_macs(TINY)}


def test_no_images_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(DyditError, match="0 images: profile at least 1"):
        profile(checkpoint, tmp_path / "out", images=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cfg", [1.0, 1.5])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmsolver++"])
def test_calls_that_ran_count_what_the_formula_says(checkpoint: Path, cfg: float, sampler: Literal["ddpm"]) -> None:
    settings = SamplerSettings(sampler=sampler, steps=6, cfg=cfg)
    summary = profile(checkpoint, images=5, settings=settings, batch=3, device="cpu").summary
    assert summary["counters_agree"]
    assert summary["operations_without_handle"] == {}
    assert summary["executed_macs"] == summary["formula_macs"]
    assert set(summary["executed_macs"]) == {"plan", "ahead", "steps"}


def test_a_wrong_formula_is_noticed(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dydit_cli.model.execution.plan_macs", lambda config, timesteps: 1)
    assert not profile(checkpoint, images=1, settings=SHORT, device="cpu").summary["counters_agree"]


def test_blocks_and_images_add_up_to_the_timesteps(profiled: Profile, tiny_dynamic: DyDiT) -> None:
    table, blocks, images = profiled.table, profiled.blocks, profiled.images
    frame = tiny_dynamic.config.embed_and_head_macs()
    assert len(blocks) == 4 * 3 * 2
    by_step = blocks.groupby("step")["total_macs"].sum() / 2 + frame
    assert by_step.to_list() == pytest.approx(table["dynamic_macs"].to_list())
    assert images["macs_per_image"].sum() == pytest.approx(table["dynamic_macs"].sum() * 2 * 5)
    assert images["ratio"].mean() == pytest.approx(profiled.summary["ratio"])
    halves = table[["dynamic_macs_cond", "dynamic_macs_uncond"]].mean(axis=1)
    assert halves.to_list() == pytest.approx(table["dynamic_macs"].to_list())
    assert (table["dynamic_macs_min"] <= table["dynamic_macs"]).all()
    assert (table["dynamic_macs"] <= table["dynamic_macs_max"]).all()
    tokens = profiled.record.tokens.sum(axis=4)  # T L G M, every image's masks being kept
    assert np.array_equal(tokens, profiled.record.token_counts)
    one = blocks[(blocks["step"] == 2) & (blocks["block"] == 1) & (blocks["half"] == "uncond")].iloc[0]
    assert one["active_tokens_mean"] == tokens[2, 1, 1].mean()
    assert one["active_tokens_max"] == tokens[2, 1, 1].max()


def test_a_film_is_what_the_model_was_given(tiny_static: DiT) -> None:
    """Of pixels: 8 bits of the first images at every call, with their labels' half of guidance."""
    pixels = replace(DyDiTConfig.from_static(TINY), in_channels=1)
    result = profile(Checkpoint.of(DyDiT(pixels), []), images=5, settings=SHORT, batch=2, device="cpu")
    assert result.film is not None
    assert result.film.shape == (4, 2, 1, *pixels.sample_shape[1:])
    seen: list[torch.Tensor] = []

    def spy(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(x[:2])
        return torch.zeros_like(x).repeat(1, 2, 1, 1)

    generate(spy, cycle_labels(list(range(10)), 2), pixels.sample_shape, SHORT.for_model(pixels), null_class=10, seed=0)
    noise = ((seen[0].clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    assert np.array_equal(result.film[0], noise)
    last = ((torch.from_numpy(result.samples[:2]).clamp(-1, 1) + 1) * 127.5).numpy()
    assert np.abs(result.film[-1] - last).mean() < np.abs(result.film[0] - last).mean()


def test_latents_have_no_film(profiled: Profile, tmp_path: Path) -> None:
    again = Profile.read(tmp_path / "profile").film
    assert profiled.film is not None
    assert again is not None
    assert np.array_equal(again, profiled.film)
    latents = Checkpoint.of(DyDiT(replace(DyDiTConfig.from_static(TINY), in_channels=4)), [])
    assert profile(latents, tmp_path / "latents", images=2, settings=SHORT, device="cpu").film is None
    assert Profile.read(tmp_path / "latents").film is None


def test_a_film_that_would_be_large_has_fewer_images(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DyDiT(replace(DyDiTConfig.from_static(TINY), in_channels=1))
    one = model.config.input_size**2 * 4  # bytes of an image's four steps
    for room, images in ((3 * one - 1, 2), (one - 1, None)):
        monkeypatch.setattr("dydit_cli.profiling.record.FILM_BYTES", room)
        film = profile(Checkpoint.of(model, []), images=5, settings=SHORT, device="cpu").film
        assert (None if film is None else film.shape[1]) == images


def test_a_long_profile_keeps_few_masks(checkpoint: Path, profiled: Profile, tmp_path: Path) -> None:
    few = profile(checkpoint, tmp_path / "few", images=5, settings=SHORT, batch=2, keep_masks=3, device="cpu")
    assert few.record.tokens.shape[3] == few.summary["images_with_masks"] == 3
    assert np.array_equal(few.record.tokens, profiled.record.tokens[:, :, :, :3])
    assert np.array_equal(few.record.token_counts, profiled.record.token_counts)
    pd.testing.assert_frame_equal(few.table, profiled.table)
    visualize(tmp_path / "few", "tokens", tmp_path / "few.png")


def test_seconds_beside_macs(checkpoint: Path) -> None:
    result = profile(checkpoint, images=2, settings=SHORT, time=True, device="cpu")
    table, summary = result.table, result.summary
    assert (table[["static_seconds", "dynamic_seconds"]] > 0).all(axis=None)
    assert table["speedup"].to_list() == pytest.approx((table["static_seconds"] / table["dynamic_seconds"]).to_list())
    assert summary["realised_efficiency"] == pytest.approx(summary["speedup"] * summary["ratio"])
    assert summary["counters_agree"]


def test_width_alone_is_what_the_sampler_sees(checkpoint: Path, profiled: Profile, tmp_path: Path) -> None:
    width = profile_width(read(checkpoint), tmp_path / "width")
    steps = profiled.record.timesteps
    assert np.array_equal(width.heads[steps], profiled.record.heads)
    assert np.array_equal(width.groups[steps], profiled.record.groups)
    seen = width.table.iloc[steps]
    assert (seen["dynamic_macs_no_tokens"].to_numpy() <= profiled.table["dynamic_macs_min"]).all()
    assert (seen["dynamic_macs_all_tokens"].to_numpy() >= profiled.table["dynamic_macs_max"]).all()
    assert seen["attention_macs"].to_list() == profiled.table["attention_macs"].to_list()
    assert sorted(path.name for path in (tmp_path / "width").iterdir()) == ["width.csv", "width.json", "width.npz"]


def test_width_of_a_static_model_is_refused(tmp_path: Path, tiny_static: DiT) -> None:
    write(Checkpoint.of(tiny_static, []), tmp_path / "static")
    with pytest.raises(DyditError, match="is a static model, which has every head and group on"):
        profile_width(read(tmp_path / "static"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_profiles_side_by_side(profiled: Profile) -> None:
    table = Comparison.of({"a": profiled, "a-2": profiled}).table
    assert table["dynamic_macs"].to_list() == [profiled.summary["macs_dynamic"]] * 2
    assert names_of(["runs/a", "b/a", "c.pt", "a"]) == ["a", "a-2", "c", "a-3"]


@pytest.mark.parametrize("figure", [name for name, one in all_figures().items() if "profile" in one.takes])
@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_figures_in_every_format(profiled: Profile, tmp_path: Path, figure: str, ending: str) -> None:
    path = visualize(tmp_path / "profile", figure, tmp_path / f"figure.{ending}")
    content = path.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])
    visualize(tmp_path / "profile", figure, path, force=True)
    assert path.read_bytes() == content
    if ending == "png":
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.shape[1] > 800
        assert len(np.unique(pixels)) > 20


def test_figures_refuse_what_they_cannot_do(profiled: Profile, tmp_path: Path) -> None:
    for figure, out, message in (
        ("pie", "a.png", "no figure 'pie'; choose one of architecture, flops, frontier, frontier-judges, loss-gap"),
        ("flops", "a.gif", r"a.gif: a figure's name ends in .png, .svg or .pdf"),
        ("flops", "profile", "a figure's name ends in"),
    ):
        with pytest.raises(DyditError, match=message):
            visualize(tmp_path / "profile", figure, tmp_path / out)
    (tmp_path / "there.png").write_text("mine")
    with pytest.raises(DyditError, match=r"there.png: already exists"):
        visualize(tmp_path / "profile", "flops", tmp_path / "there.png")
    assert (tmp_path / "there.png").read_text() == "mine"


def test_token_share_is_the_mean_over_steps_blocks_and_halves(profiled: Profile) -> None:
    shares = token_share(profiled)
    assert shares.shape == (5, 4, 4)
    assert shares[3, 1, 2] == pytest.approx(profiled.record.tokens[:, :, :, 3, 6].mean())


def test_displayable_images() -> None:
    grey = displayable(np.linspace(-2, 2, 16, dtype=np.float32).reshape(1, 4, 4))
    assert grey.shape == (4, 4)
    assert (grey.min(), grey.max()) == (0.0, 1.0)
    assert displayable(np.zeros((3, 4, 4), np.float32)).shape == (4, 4, 3)
    latent = displayable(np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32))
    assert latent.shape == (8, 8, 3)
    assert (latent.min(), latent.max()) == (0.0, 1.0)


def test_grids() -> None:
    pixels = to_pixels(np.linspace(-1, 1, 5 * 64, dtype=np.float32).reshape(5, 1, 8, 8))
    assert (pixels.min(), pixels.max(), pixels.shape) == (0, 255, (5, 8, 8, 1))
    pictures = [picture(image) for image in pixels]
    assert pictures[0].size == (64, 64)
    assert make_grid(pictures).size == (3 * 66 + 2, 2 * 66 + 2)


def test_an_image_does_not_depend_on_its_batch(tiny_static: DiT) -> None:
    """Each image has a seed of its own, and DDPM's noise too."""
    settings = SamplerSettings(sampler="ddpm", steps=3).for_model(TINY)
    labels = cycle_labels([0, 3], 5)
    whole = generate(tiny_static, labels, (1, 4, 4), settings, null_class=10, seed=7)
    parts = generate(tiny_static, labels, (1, 4, 4), settings, null_class=10, seed=7, batch=2)
    assert torch.allclose(whole, parts, atol=1e-4)
    other = generate(tiny_static, labels, (1, 4, 4), settings, null_class=10, seed=8)
    assert not torch.allclose(whole, other, atol=1e-2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "0 sampling steps: the schedule has 1000, so ask for 1 to 1000"),
        ({"steps": 1001}, "1001 sampling steps"),
        ({"sampler": "dormand"}, "no sampler 'dormand'; choose one of ddpm, ddim"),
        ({"cfg": 0.5}, r"guidance scale 0.5; it must be 1 \(none\) or more"),
        ({"cfg_channels": "2"}, "guidance channels '2'; choose 3 or all"),
    ],
)
def test_sampler_settings_are_checked(values: dict[str, object], message: str) -> None:
    with pytest.raises(DyditError, match=message):
        SamplerSettings(**values).for_model(TINY)  # type: ignore[arg-type]


def test_unknown_labels_are_named(tiny_static: DiT) -> None:
    with pytest.raises(DyditError, match="class 10: the model has classes 0 to 9"):
        generate(tiny_static, torch.tensor([0, 10]), (1, 4, 4), SHORT.for_model(TINY), null_class=10)


def test_guidance_over_all_channels_guides_all() -> None:
    from dydit_cli.diffusion.sampler import guided

    def model(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(x), 8, 2, 2) * (y == 0).float().view(-1, 1, 1, 1)

    x, t, y = torch.zeros(1, 4, 2, 2), torch.zeros(1), torch.zeros(1)
    assert guided(model, x, t, y, 1, 3.0, "3")[0, :, 0, 0].tolist() == [3, 3, 3, 1, 1, 1, 1, 1]
    assert guided(model, x, t, y, 1, 3.0, "all")[0, :, 0, 0].tolist() == [3, 3, 3, 3, 1, 1, 1, 1]
