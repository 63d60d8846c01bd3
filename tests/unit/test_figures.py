"""Every figure from small real inputs: drawn the same each time, with units, and its numbers as CSV."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from dydit_cli.artifacts.base import kinds
from dydit_cli.artifacts.bench_options import BenchSettings
from dydit_cli.artifacts.profile import Profile
from dydit_cli.artifacts.study import StudyTable
from dydit_cli.bench.bench import bench
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.cli.app import app
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.options import LossSettings
from dydit_cli.evaluate.timestep_loss import measure_losses
from dydit_cli.figures import base as figures_base
from dydit_cli.figures.base import all_figures, figure, figures_of
from dydit_cli.figures.losses import normalised
from dydit_cli.figures.samples import SampleRows, rows_of, samples_table
from dydit_cli.figures.style import new_figure, styled
from dydit_cli.figures.tokens import SHARE, spans
from dydit_cli.figures.tradeoff import title_of
from dydit_cli.figures.visualize import load, visualize
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT, DyDiTConfig
from dydit_cli.profiling.profile import profile
from dydit_cli.sampling.images import sample_images
from dydit_cli.sampling.options import SamplingConfig
from tests.conftest import randomize
from tests.unit.test_frontier import a_front

FIGURES = all_figures()
DIGITS = DiTConfig(input_size=8, patch_size=2, in_channels=1, hidden_size=24, depth=2, num_heads=3, num_classes=10)
LOSSES = LossSettings(images=4, timesteps=5, maps_at=(600, 100), map_images=2, map_noises=2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder (or file) for every kind of source."""
    room = tmp_path_factory.mktemp("sources")
    small = DiTConfig(input_size=8, patch_size=4, in_channels=1, hidden_size=12, depth=1, num_heads=3, num_classes=10)
    write(Checkpoint.of(randomize(DiT(small)), []), room / "small")
    write(Checkpoint.of(randomize(DiT(DIGITS), scale=0.1), []), room / "large")
    write(Checkpoint.of(randomize(DyDiT(DyDiTConfig.from_static(DIGITS, token_router_reduction=4))), []), room / "dynamic")
    profile(room / "dynamic", room / "profile", images=2, settings=SamplerSettings(steps=6), device="cpu")
    measure_losses([room / "small", room / "large"], room / "losses", settings=LOSSES, device="cpu")
    quick = BenchSettings(batch=2, steps=4, measured=1, repeats=1)
    (room / "bench.json").write_text(json.dumps(bench(room / "dynamic", settings=quick, device="cpu").to_dict()))
    for name in ("small", "large"):
        how = SamplingConfig(settings=SamplerSettings(steps=2), device="cpu")
        sample_images(room / name, room / f"samples-{name}", how, num=4)
    (room / "run").mkdir()
    rows = [{"step": i, "mse": 1 / i, "vb": 0.1, "ratio": 0.9, "target": 0.8, "skipped": i == 3} for i in range(1, 9)]
    (room / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    a_study(room / "study")
    a_study_of_steps(room / "steps")
    return {
        "profile": room / "profile",
        "losses": room / "losses",
        "bench": room / "bench.json",
        "run": room / "run",
        "study": room / "study",
        "tradeoff-steps": room / "steps",
        "frontier": a_front(room / "front"),
    }


def a_study(folder: Path, **columns: Callable[[float, int], float] | None) -> Path:
    """A static model, its control, a DyDiT, a pruning and ToMe, two seeds of each; a column's values are a function of
    the MACs ratio and the seed, and None leaves it out."""
    values: dict[str, Any] = {
        "macs": lambda ratio, seed: 48e6 * ratio,
        "speedup": lambda ratio, seed: 1 / ratio,
        "frechet": lambda ratio, seed: 10 / ratio + seed,
        "recognised": lambda ratio, seed: 0.9 + 0.1 * ratio,
        "loss_ratio": lambda ratio, seed: 2 - ratio,
        **columns,
    }
    kinds = [("static", 1.0, 1.0), ("control", 1.0, 1.0), ("dydit", 0.5, 0.52), ("dydit", 0.3, 0.31)]
    kinds += [("magnitude", 0.25, 0.3), ("magnitude", 0.5, 0.53), ("tome", 0.2, 0.8)]
    rows = [
        {"method": method, "target": target, "seed": seed, "ratio": ratio}
        | {name: value(ratio, seed) for name, value in values.items() if value}
        for seed in (0, 1)
        for method, target, ratio in kinds
    ]
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / "study.csv", index=False)
    protocol = {"model": "digits-dit", "data": "digits", "images": 1000, "sampler": "ddim", "steps": 50, "cfg": 1.5}
    (folder / "study.json").write_text(json.dumps(protocol))
    pixels = {
        name: np.full((3, 8, 8, 1), i, dtype=np.uint8)
        for i, name in enumerate(("static", "control", "dydit-0.5", "dydit-0.3", "magnitude-0.25", "magnitude-0.5", "tome-0.2"))
    }
    np.savez(folder / "samples.npz", **pixels)  # type: ignore[arg-type]
    return folder


def a_study_of_steps(folder: Path) -> Path:
    """As `a_study`, of two judges, and with fewer steps of the static model and of both DyDiTs; an image of the static model
    costs 100 times a forward."""
    a_study(folder, frechet_shades=lambda ratio, seed: 1 / ratio)
    rows = pd.read_csv(folder / "study.csv").assign(steps=50)
    fewer = [
        rows[rows["method"] == method].assign(steps=steps, frechet=rows["frechet"] + 50 / steps)
        for method in ("static", "dydit")
        for steps in (20, 10)
    ]
    for part in fewer[:2]:
        part["method"], part["target"] = "steps", part["steps"].astype(float)
    rows = pd.concat([rows, *fewer]).assign(forwards_per_image=lambda rows: 2 * rows["steps"])
    rows.assign(macs_per_image=rows["macs"] * rows["forwards_per_image"]).to_csv(folder / "study.csv", index=False)
    protocol = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps({**protocol, "judges": ["digits", "shades"]}))
    return folder


@pytest.mark.parametrize(
    ("static", "dydit", "spread"),
    [
        ([0], [0], "One seed"),
        ([0, 1], [0, 1], "Mean and standard deviation over 2 seeds"),
        ([0, 1], [0], "Mean and standard deviation over up to 2 seeds"),
    ],
)
def test_a_title_says_how_many_seeds_there_are(static: list[int], dydit: list[int], spread: str) -> None:
    rows = [{"method": name, "target": 0.5, "seed": seed} for name, of in (("static", static), ("dydit", dydit)) for seed in of]
    study = StudyTable(Path(), pd.DataFrame(rows), {"model": "digits-dit", "data": "digits", "images": 1000}, {})
    assert title_of(study) == f"digits-dit on digits. {spread}, 1,000 samples each"


def source_of(inputs: dict[str, Path], figure: str) -> Path:
    return inputs.get(figure, inputs[FIGURES[figure].takes[0]])


def sample_rows(*folders: Path) -> SampleRows:
    return rows_of(load("samples", folders))


def drawn(figure: str, source: Path | Profile) -> Any:
    loaded = load(figure, source)
    with styled():
        return FIGURES[figure].draw(loaded)


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_with_its_numbers(inputs: dict[str, Path], tmp_path: Path, figure: str) -> None:
    """PNG and SVG, the same bytes each time, and a CSV that is the figure's table."""
    kind = FIGURES[figure]
    source = source_of(inputs, figure)
    visualize(source, figure, tmp_path / "a.png", data=True)
    first, again = (visualize(source, figure, tmp_path / name).read_bytes() for name in ("a.svg", "b.svg"))
    assert first.startswith(b"<?xml")
    assert first == again
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 800
        assert len(np.unique(np.asarray(picture.convert("L")))) > 8
    written, table = pd.read_csv(tmp_path / "a.csv"), kind.table(load(figure, source))
    pd.testing.assert_frame_equal(written, table, check_dtype=False)
    assert kind in figures_of(kinds()[kind.takes[0]].read(source))
    assert kind.caption.endswith(".")
    assert not kind.title.endswith(".")


@pytest.mark.parametrize("figure", FIGURES)
def test_axes_say_what_they_measure(inputs: dict[str, Path], figure: str) -> None:
    """Where there is an axis with numbers it has a label, or a neighbour that it shares them with."""
    figure_drawn = drawn(figure, source_of(inputs, figure))
    words = [figure_drawn.get_supxlabel()] + [text for ax in figure_drawn.axes for text in (ax.get_xlabel(), ax.get_ylabel())]
    wanted = {
        "architecture": ["active [%]", "timestep t"],
        "tokens": ["[% of the steps and blocks]"],
        "flops": ["MACs per forward and image", "timestep t"],
        "training": ["optimiser step", "share of static"],
        "loss-gap": ["squared error\nof the noise", "timestep t"],
        "loss-maps": ["from its map's least (0) to its greatest (1)"],
        "tradeoff": ["MACs per forward and image", "sampling speed / static's", "recognised samples [%]", "Fréchet distance"],
        "tradeoff-steps": [
            "MACs per image, all of its forwards [GMACs]",
            "Fréchet distance, digits",
            "Fréchet distance, shades",
        ],
        "frontier-judges": ["Fréchet distance, digits", "seconds per image, cpu [s]", "MACs per image, share of a's"],
        "frontier": ["MACs per image [GMACs]", "seconds per image, cpu [s]", "mean squared distance"],
        "samples": ["of the MACs"],
        "time": ["seconds of 4 steps"],
    }
    for text in wanted[figure]:
        assert any(text in word for word in words), (text, words)


def test_the_numbers_are_the_profiles(inputs: dict[str, Path]) -> None:
    loaded = Profile.read(inputs["profile"])
    masks = FIGURES["architecture"].table(loaded).set_index(["part", "step", "block", "number"])["active"]
    assert masks["attention head", 4, 1, 2] == loaded.record.heads[4, 1, 2]
    assert masks["channel group"].to_numpy().tolist() == loaded.record.groups.ravel().tolist()
    macs = FIGURES["flops"].table(loaded).pivot(index="step", columns="part", values="macs_per_forward_and_image")
    assert macs["MLP"].to_list() == loaded.table["mlp_macs"].to_list()
    assert macs.drop(columns=["dynamic model", "static model"]).sum(axis=1).to_list() == pytest.approx(
        loaded.table["dynamic_macs"].to_list()
    )
    tokens = FIGURES["tokens"].table(loaded)
    one = tokens.query("image == 1 and token_row == 1 and token_column == 3").set_index("from_timestep")
    assert one.loc[one["steps"] == "all", SHARE].item() == pytest.approx(100 * loaded.record.tokens[:, :, :, 1, 7].mean())
    phase = one[one["steps"] == "phase"].iloc[1]
    first = loaded.record.timesteps.tolist().index(phase.name)
    last = loaded.record.timesteps.tolist().index(phase["to_timestep"])
    assert phase[SHARE] == pytest.approx(100 * loaded.record.tokens[first : last + 1, :, :, 1, 7].mean())


def test_what_is_drawn_is_the_table(inputs: dict[str, Path]) -> None:
    """The maps' pixels and the curves' points, taken from the figure."""
    table = FIGURES["tokens"].table(load("tokens", inputs["profile"]))
    shown = [ax.images[0].get_array() for ax in drawn("tokens", inputs["profile"]).axes[:-1] if ax.images]
    assert np.allclose(shown[1].ravel(), table.query("image == 0 and steps == 'all'")[SHARE])
    gap = FIGURES["loss-gap"].table(load("loss-gap", inputs["losses"]))
    below = drawn("loss-gap", inputs["losses"]).axes[1]
    assert np.allclose(below.lines[0].get_ydata(), gap.query("curve != 'loss'")["mse_of_the_noise"])
    points = FIGURES["tradeoff"].table(load("tradeoff", inputs["study"])).query("measure == 'frechet_distance'")
    panel = drawn("tradeoff", inputs["study"]).axes[0]
    lines = {container.get_label(): container.lines[0].get_xydata() for container in panel.containers}
    assert lines["DyDiT"].tolist() == points.query("method == 'dydit'")[["ratio_of_static", "mean"]].to_numpy().tolist()
    time = FIGURES["time"].table(load("time", inputs["bench"]))
    bars = [bar.get_width() for bars in drawn("time", inputs["bench"]).axes[0].containers for bar in bars]
    assert sorted(bars) == pytest.approx(sorted(time["seconds"].iloc[:-1]))


def test_tokens_of_a_static_model(inputs: dict[str, Path]) -> None:
    """All of them are computed: every map has the brightest colour, over one step as over all."""
    static = profile(inputs["losses"].parent / "small", images=1, settings=SamplerSettings(steps=2), device="cpu")
    axes = drawn("tokens", static).axes
    assert [ax.get_title() for ax in axes[:-1]] == ["image", "all steps", "t 999", "t 0"]
    for ax in axes[1:-1]:
        assert (ax.images[0].norm(ax.images[0].get_array()) == 1).all()
        assert ax.get_xlabel() == "100 %"


def test_phases_cover_all_steps() -> None:
    assert spans(50) == [slice(0, 50), *(slice(10 * i, 10 * i + 10) for i in range(5))]
    assert spans(3) == [slice(0, 3), slice(0, 1), slice(1, 2), slice(2, 3)]
    assert spans(1) == [slice(0, 1)]


def test_spread_over_seeds(inputs: dict[str, Path]) -> None:
    table = FIGURES["tradeoff"].table(load("tradeoff", inputs["study"]))
    row = table.query("measure == 'frechet_distance' and method == 'dydit' and target == 0.5").iloc[0]
    assert (row["mean"], row["standard_deviation"], row["seeds"]) == (
        pytest.approx(10 / 0.52 + 0.5),
        pytest.approx(0.5**0.5),
        2,
    )
    assert row["macs_per_forward_and_image"] == pytest.approx(48e6 * 0.52)
    share = table.query("measure == 'recognised_percent' and method == 'static'")["mean"].item()
    assert share == pytest.approx(100)


def test_a_study_without_a_measure_has_fewer_panels(tmp_path: Path) -> None:
    a_study(tmp_path / "a", recognised=None, speedup=lambda ratio, seed: float("nan"))
    labels = [ax.get_ylabel() for ax in drawn("tradeoff", tmp_path / "a").axes]
    assert [label.split(" (")[0] for label in labels] == ["Fréchet distance", "held-out loss / static's"]
    a_study(tmp_path / "b", recognised=None, loss_ratio=None, speedup=None, frechet=lambda ratio, seed: 10 / ratio**3)
    (only,) = drawn("tradeoff", tmp_path / "b").axes
    assert only.get_yscale() == "log"


def test_fewer_steps_are_lines_over_a_whole_images_macs(inputs: dict[str, Path]) -> None:
    study = load("tradeoff-steps", inputs["tradeoff-steps"])
    table = FIGURES["tradeoff-steps"].table(study)
    assert set(table["measure"]) == {"frechet_distance", "frechet_distance_shades"}
    panel = drawn("tradeoff-steps", inputs["tradeoff-steps"]).axes[0]
    lines = {one.get_label(): one.lines[0] for one in panel.containers}
    static = [(48e6 * 2 * steps / 1e9, 10 + 0.5 + (50 / steps if steps < 50 else 0)) for steps in (10, 20, 50)]
    assert np.allclose(lines["static DiT"].get_xydata(), static)
    half = [(48e6 * 0.52 * 2 * steps / 1e9, 10 / 0.52 + 0.5 + (50 / steps if steps < 50 else 0)) for steps in (10, 20, 50)]
    assert np.allclose(lines["DyDiT, lambda 0.5"].get_xydata(), half)
    assert lines["DyDiT, lambda 0.5"].get_color() != lines["DyDiT, lambda 0.3"].get_color()
    assert lines["magnitude pruning"].get_linestyle() == "None"
    assert len(lines["magnitude pruning"].get_xydata()) == 2
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "linear")
    # the figure of forwards is as it was, with a panel more
    usual = FIGURES["tradeoff"].table(load("tradeoff", inputs["study"]))
    seen = FIGURES["tradeoff"].table(study)
    judged = seen.query("measure == 'frechet_distance_shades'")
    assert judged["mean"].to_list() == pytest.approx((1 / judged["ratio_of_static"]).to_list())
    pd.testing.assert_frame_equal(seen.drop(judged.index).reset_index(drop=True), usual)
    labels = [ax.get_ylabel().split("\n")[0] for ax in drawn("tradeoff", inputs["tradeoff-steps"]).axes]
    assert labels[:2] == ["Fréchet distance, digits", "Fréchet distance, shades"]
    with pytest.raises(DyditError, match="all rows of this study have the same number of steps; give its recipe"):
        FIGURES["tradeoff-steps"].table(load("tradeoff-steps", inputs["study"]))


def test_samples_of_fewer_steps_are_at_like_macs_of_an_image(inputs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(inputs["tradeoff-steps"], tmp_path / "study")
    with np.load(tmp_path / "study" / "samples.npz") as arrays:
        kept = {**arrays, "steps-20": arrays["static"], "steps-10": arrays["static"], "dydit-0.5-20steps": arrays["static"]}
    np.savez(tmp_path / "study" / "samples.npz", **kept)
    rows = sample_rows(tmp_path / "study").rows
    assert [row.label for row in rows if "steps" in row.label] == ["static DiT, 20 steps"]
    ratios = {row.label: row.ratio for row in rows}
    assert ratios["static DiT, 20 steps"] == pytest.approx(0.4)
    assert ratios["DyDiT, lambda 0.5"] == pytest.approx(0.52)


def test_of_a_studys_samples_those_at_like_macs(inputs: dict[str, Path]) -> None:
    rows = sample_rows(inputs["study"])
    assert [(row.label, row.ratio, int(row.pixels[0][0, 0, 0])) for row in rows.rows] == [
        ("static DiT", 1.0, 0),
        ("static DiT, fine-tuned as long", 1.0, 1),
        ("DyDiT, lambda 0.5", pytest.approx(0.52), 2),
        ("magnitude pruning, keep 0.5", pytest.approx(0.53), 5),
        ("ToMe, 0.2 merged", pytest.approx(0.8), 6),
    ]
    assert rows.note == "ddim, 50 steps, cfg 1.5, seed 0"


def test_samples_are_from_all_over_many_classes(tmp_path: Path) -> None:
    folder = a_study(tmp_path / "study")
    protocol = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps({**protocol, "classes": list(range(62))}))
    np.savez(folder / "samples.npz", static=np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1))
    rows = sample_rows(folder)
    wanted = [0, 6, 12, 18, 24, 31, 37, 43, 49, 55]
    assert rows.classes == np.ravel(rows.rows[0].pixels).tolist() == wanted
    assert samples_table(load("samples", folder))["image"].to_list() == wanted
    (folder / "study.json").write_text(json.dumps({**protocol, "classes": list(range(10))}))
    assert sample_rows(folder).classes == list(range(10))


def test_sample_folders_side_by_side(inputs: dict[str, Path], tmp_path: Path) -> None:
    room = inputs["losses"].parent
    arguments = [str(room / "samples-small"), str(room / "samples-large"), "--figure", "samples", "--data"]
    result = CliRunner().invoke(app, ["visualize", *arguments, "--out", str(tmp_path / "s.png")])
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "s.csv") in "".join(result.stdout.splitlines())
    table = pd.read_csv(tmp_path / "s.csv")
    assert table["model"].to_list() == ["small"] * 4 + ["large"] * 4
    assert table["class"].to_list() == [0, 1, 2, 3] * 2
    rows = sample_rows(room / "samples-small", room / "samples-large")
    with Image.open(room / "samples-large" / "00002-class2.png") as picture:
        assert np.array_equal(rows.rows[1].pixels[2][..., 0], np.asarray(picture))
    same = sample_rows(room / "samples-small", room / "samples-small")
    assert [row.label for row in same.rows] == ["samples-small"] * 2


def test_samples_drawn_otherwise_are_not_set_side_by_side(inputs: dict[str, Path], tmp_path: Path) -> None:
    room = inputs["losses"].parent
    sample_images(
        room / "small", tmp_path / "other", SamplingConfig(settings=SamplerSettings(steps=2), seed=1, device="cpu"), num=2
    )
    with pytest.raises(
        DyditError, match=r"other: drawn with seed 1, .*samples-large with 0; sample both with the same settings"
    ):
        sample_rows(room / "samples-large", tmp_path / "other")


def test_maps_run_from_their_least_to_their_greatest() -> None:
    patches = np.array([[[[1, 2], [3, 5]], [[4, 4], [4, 4]]]], dtype=np.float32)
    assert normalised(patches).tolist() == [[[[0, 0.25], [0.5, 1]], [[0, 0], [0, 0]]]]


@pytest.mark.parametrize(
    ("figure", "source", "message"),
    [
        ("tokens", "large", "not a profile: it has no profile.json"),
        ("training", "losses", "not a training run: it has no metrics.jsonl"),
        ("loss-gap", "study", "not losses: it has no losses.json; make one with: dydit losses"),
        ("tradeoff", "losses", "not a study: it has no study.csv; make one with: dydit study"),
        (
            "samples",
            "losses",
            r"losses: neither a study \(study.csv\) nor samples \(samples.json\); make one with: dydit study",
        ),
        ("time", "nowhere.json", "nowhere.json: no such file; make one with: dydit bench --json"),
        ("time", "study/study.json", "study.json: not a benchmark: it has no 'device'; make one with: dydit bench --json"),
        ("time", "study/study.csv", r"study.csv: not a benchmark: not readable as JSON \("),
        ("time", "study", "study: not a benchmark: Is a directory; make one with"),
    ],
)
def test_the_wrong_source_is_named(inputs: dict[str, Path], tmp_path: Path, figure: str, source: str, message: str) -> None:
    with pytest.raises(DyditError, match=message):
        visualize(inputs["losses"].parent / source, figure, tmp_path / "a.png", data=True)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_named(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DyditError, match="the flops figure is drawn of one source and 2 were named; name one"):
        visualize([inputs["profile"], inputs["profile"]], "flops", tmp_path / "a.png")
    with pytest.raises(DyditError, match=r"the time figure is drawn from what `dydit bench.*` writes, not from a profile"):
        load("time", Profile.read(inputs["profile"]))
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(DyditError, match=r"a.csv: already exists"):
        visualize(inputs["profile"], "flops", tmp_path / "a.png", data=True)
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("method,seed\n", "it has no column 'target'"),
        ("method,target,seed,macs,ratio,frechet\n", "holds no row yet"),
        ("", "damaged study"),
    ],
)
def test_a_table_that_is_no_studys_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "study.csv").write_text(content)
    with pytest.raises(DyditError, match=message):
        load("tradeoff", tmp_path)


def test_damaged_samples_are_named(tmp_path: Path) -> None:
    folder = a_study(tmp_path / "study")
    (folder / "samples.npz").write_bytes(b"PK")
    with pytest.raises(DyditError, match=r"samples.npz: not readable as samples"):
        sample_rows(folder)
    np.savez(folder / "samples.npz", other=np.zeros((1, 2, 2, 1), dtype=np.uint8))
    with pytest.raises(DyditError, match=r"samples.npz: holds none of the rows of study.csv"):
        sample_rows(folder)
    np.savez(folder / "samples.npz", static=np.zeros((1, 2, 2)))
    with pytest.raises(DyditError, match=r"not readable as samples \(static is float64 of shape \(1, 2, 2\)\)"):
        sample_rows(folder)
    (folder / "samples.npz").unlink()
    with pytest.raises(DyditError, match=r"this study kept no samples: it has no samples.npz"):
        sample_rows(folder)


def test_every_source_says_how_it_is_made() -> None:
    every = kinds()
    for kind in FIGURES.values():
        assert all(every[name].made_by.startswith("dydit ") for name in kind.takes)


def test_a_figure_of_ones_own_is_one_function(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Registered, it is known to the command, its help and its errors, and to what a profile allows."""

    def steps(profile: Profile) -> pd.DataFrame:
        return profile.table[["step", "timestep"]]

    @figure("toy", "profile", title="Steps", caption="Each step.", table=steps)
    def draw(profile: Profile) -> Any:
        canvas = new_figure(9.0, 2.0)
        canvas.subplots().plot(steps(profile)["timestep"])
        return canvas

    try:
        arguments = ["visualize", str(inputs["profile"]), "--figure", "toy", "--data", "--out", str(tmp_path / "toy.png")]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert pd.read_csv(tmp_path / "toy.csv")["step"].to_list() == list(range(6))
        assert "toy" in [one.name for one in figures_of(Profile.read(inputs["profile"]))]
        assert "toy" in CliRunner().invoke(app, ["visualize", "--help"]).output
        with pytest.raises(DyditError, match=r"choose one of .*toy"):
            visualize(inputs["profile"], "pie", tmp_path / "pie.png")
    finally:
        del figures_base._figures["toy"]


def test_the_commands_help_names_every_figure() -> None:
    words = " ".join(CliRunner().invoke(app, ["visualize", "--help"], env={"COLUMNS": "200"}).output.split())
    assert f"{', '.join(sorted(FIGURES)[:-1])} or {max(FIGURES)}." in words
