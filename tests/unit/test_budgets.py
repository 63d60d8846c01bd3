"""One DyDiT for every FLOPs ratio of a range."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dydit_cli.checkpoint.budgets import at_ratio, with_range
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.export import export
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import load, read
from dydit_cli.compress.convert import convert
from dydit_cli.data.load import load_data
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import DynamicBackbone
from dydit_cli.model.execution import executor
from dydit_cli.model.families.dit import DyDiT, DyDiTConfig
from dydit_cli.model.macs import flops_ratio
from dydit_cli.model.options import Execution
from dydit_cli.model.planning import width_masks
from dydit_cli.model.routers import GateNoise, budget_mix
from dydit_cli.profiling.allocate import allocate, cheapest
from dydit_cli.profiling.calibrate import calibrate, measure_range, sampled_ratio
from dydit_cli.profiling.profile import profile
from dydit_cli.train.batch import TrainingBatches
from dydit_cli.train.objective import Objective
from dydit_cli.train.recipe import Recipe, recipe_from_dict
from dydit_cli.train.run import finetune
from tests.conftest import TINY, inputs, randomize
from tests.kill_resume import make_start
from tests.unit.test_train import digits_dydit

FEW = SamplerSettings(steps=5)
BUDGETS = (0.2, 0.4, 0.6, 0.8, 1.0)


def ranged(model: DynamicBackbone, low: float = 0.2, high: float = 1.0) -> Checkpoint:
    return with_range(Checkpoint.of(model, []), low, high)


def trained_like(model: DynamicBackbone) -> DynamicBackbone:
    """Its tables rise, each entry by a step of its own, from where most is off to where most is on."""
    checkpoint = ranged(model)
    generator = torch.Generator().manual_seed(2)
    rises = {
        name: 3 * (torch.linspace(-1, 1, len(w))[:, None] + 0.2 * torch.randn(w.shape, generator=generator))
        for name, w in checkpoint.weights.items()
        if ".budget." in name
    }
    assert rises
    built = Checkpoint(checkpoint.config, {**checkpoint.weights, **rises}, []).build()
    assert isinstance(built, DynamicBackbone)
    return built


@pytest.mark.parametrize(
    ("setting", "mix"),
    [
        (0.2, [1, 0, 0, 0, 0, 0]),
        (0.5, [0, 0.5, 0.5, 0, 0, 0]),
        (1.0, [0, 0, 0, 0, 1, 0]),
        (0.1, [1.5, -0.5, 0, 0, 0, 0]),
        (1.1, [0, 0, 0, -0.5, 1.5, 0]),
        (math.inf, [0, 0, 0, 0, 1, 1]),
    ],
)
def test_what_lies_between_two_budgets_is_mixed(setting: float, mix: list[float]) -> None:
    torch.testing.assert_close(budget_mix(BUDGETS, torch.tensor([setting])), torch.tensor([mix], dtype=torch.float32))


def test_a_new_one_computes_at_every_ratio_what_it_did(any_dynamic: DynamicBackbone) -> None:
    """The routers of a converted model are all on, and stay so."""
    any_dynamic.reset_routers(bias=1e3, token_bias=1e3)  # high enough for random embeddings
    batch = inputs(any_dynamic.config)
    expected = any_dynamic(*batch)
    model = ranged(any_dynamic).build()
    assert isinstance(model, DynamicBackbone)
    for ratio in (0.2, 0.33, 0.7, 1.0):
        model.set_flops_ratio(ratio)
        assert torch.equal(model(*batch), expected)


def test_sparse_is_masked_at_every_ratio_between_two_calls(any_dynamic: DynamicBackbone) -> None:
    model = trained_like(any_dynamic)
    batch, ratios = inputs(model.config), []
    sparse = executor(model, "sparse")
    for ratio in (0.2, 0.5, 0.8, 1.0, 0.5):
        sparse.set_flops_ratio(ratio)
        expected, routing = model(*batch, return_routing=True)
        torch.testing.assert_close(sparse(*batch), expected, rtol=1e-4, atol=1e-4)
        ratios.append(flops_ratio(routing, model.config).mean().item())
    assert ratios[:4] == sorted(ratios[:4])
    assert ratios[0] < ratios[2] < ratios[3] == 1
    assert ratios[4] == ratios[1]


def test_one_setting_for_each_sample_is_each_samples_own(any_dynamic: DynamicBackbone) -> None:
    model = trained_like(any_dynamic)
    x, t, y = inputs(model.config)
    settings = [0.25, 0.9, math.inf, 0.5]
    model.set_routers(torch.tensor(settings))
    together = model(x, t, y)
    for i, setting in enumerate(settings):
        model.set_routers(torch.tensor([setting]))
        torch.testing.assert_close(together[i], model(x[i : i + 1], t[i : i + 1], y[i : i + 1])[0], rtol=1e-4, atol=1e-5)


def test_one_ratio_of_it_is_a_dydit_of_every_format(any_dynamic: DynamicBackbone, tmp_path: Path) -> None:
    model = trained_like(any_dynamic)
    whole = Checkpoint.of(model, [])
    batch = inputs(model.config)
    for ratio in (0.3, 1.0):
        model.set_flops_ratio(ratio)
        one = at_ratio(whole, ratio)
        assert {name: w.shape for name, w in one.weights.items()} == {n: w.shape for n, w in any_dynamic.state_dict().items()}
        torch.testing.assert_close(one.build()(*batch), model(*batch), rtol=1e-4, atol=1e-4)
        write(one, tmp_path / "one")
        assert json.loads((tmp_path / "one/config.json").read_text())["format_version"] == 1


def test_its_folder_has_a_version_that_older_programs_refuse(tiny_dynamic: DyDiT, tmp_path: Path) -> None:
    checkpoint = measure_range(Checkpoint.of(trained_like(tiny_dynamic), []), images=4, settings=FEW, device="cpu", most=10)
    write(checkpoint, tmp_path / "range")
    header = json.loads((tmp_path / "range/config.json").read_text())
    assert header["format_version"] == 2
    again = read(tmp_path / "range")
    assert again.config == checkpoint.config
    assert again.weights.keys() == checkpoint.weights.keys()
    assert all(torch.equal(w, again.weights[name]) for name, w in checkpoint.weights.items())
    write(again, tmp_path / "second")
    assert (tmp_path / "second/model.safetensors").read_bytes() == (tmp_path / "range/model.safetensors").read_bytes()


def test_it_is_exported_at_one_ratio_alone(tiny_dynamic: DyDiT, tmp_path: Path) -> None:
    model = trained_like(tiny_dynamic)
    write(Checkpoint.of(model, []), tmp_path / "range")
    with pytest.raises(DyditError, match=r"is of all FLOPs ratios from 0\.2 to 1, which the format 'dydit' cannot say; choose"):
        export(tmp_path / "range", tmp_path / "no.pt", format="dydit")
    export(tmp_path / "range", tmp_path / "half.pt", format="dydit", reading=LoadOptions(flops_ratio=0.5))
    model.set_flops_ratio(0.5)
    batch = inputs(model.config)
    half = read(tmp_path / "half.pt", LoadOptions(num_heads=3, input_size=4, family="dit")).build()
    torch.testing.assert_close(half(*batch), model(*batch), rtol=1e-4, atol=1e-4)


def test_the_table_meets_a_ratio_that_nobody_measured() -> None:
    """At sizes where one head is no large share of the model."""
    model = trained_like(randomize(digits_dydit()))
    checkpoint = measure_range(Checkpoint.of(model, []), images=16, settings=FEW, device="cpu")
    settings = [setting for setting, _ in checkpoint.config.measured]  # type: ignore[attr-defined]
    assert settings == sorted(settings)
    measured = checkpoint.build()
    assert isinstance(measured, DynamicBackbone)
    for ratio in (0.35, 0.47, 0.55, 0.72):
        measured.set_flops_ratio(ratio)
        assert sampled_ratio(measured, 16, FEW, 0) == pytest.approx(ratio, abs=0.01)
    one = profile(at_ratio(checkpoint, 0.5), name="one", images=16, settings=FEW, batch=16).summary
    assert one["routed_ratio"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("execution", ["masked", "sparse", "complete"])
def test_load_sets_it_and_says_what_it_can_be_set_to(tiny_dynamic: DyDiT, tmp_path: Path, execution: Execution) -> None:
    model = trained_like(tiny_dynamic)
    write(Checkpoint.of(model, []), tmp_path / "range")
    batch = inputs(model.config)
    loaded = load(tmp_path / "range", device="cpu", execution=execution, flops_ratio=0.45)
    model.set_flops_ratio(1.0 if execution == "complete" else 0.45)
    torch.testing.assert_close(loaded(*batch), model(*batch), rtol=1e-4, atol=1e-4)
    loaded.set_flops_ratio(0.6)
    model.set_flops_ratio(1.0 if execution == "complete" else 0.6)
    torch.testing.assert_close(loaded(*batch), model(*batch), rtol=1e-4, atol=1e-4)
    with pytest.raises(DyditError, match=r"^FLOPs ratio 0\.1 is out of the model's range, 0\.2 to 1$"):
        loaded.set_flops_ratio(0.1)


def test_what_has_no_range_says_so(tiny_dynamic: DyDiT, tmp_path: Path) -> None:
    write(Checkpoint.of(tiny_dynamic, []), tmp_path / "fixed")
    with pytest.raises(DyditError, match=r"fixed: has one FLOPs ratio; train a model of a range: dydit finetune CKPT --flops"):
        load(tmp_path / "fixed", flops_ratio=0.5)
    with pytest.raises(DyditError, match="fixed: has one FLOPs ratio"):
        read(tmp_path / "fixed", LoadOptions(flops_ratio=0.5))
    for attempt in (lambda: load("digits-dit", flops_ratio=0.5), lambda: read("digits-dit", LoadOptions(flops_ratio=0.5))):
        with pytest.raises(DyditError, match=r"digits-dit: is a static model, which has no FLOPs ratio to set; convert it"):
            attempt()
    with pytest.raises(DyditError, match=r"is of all FLOPs ratios from 0\.2 to 1; say --flops-ratio where it is used"):
        calibrate(ranged(tiny_dynamic), 0.5, device="cpu")
    with pytest.raises(DyditError, match=r"is of the range 0\.2:1; keep it, or begin with a DyDiT of one ratio"):
        with_range(ranged(tiny_dynamic), 0.3, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets": [0.5]}, "budgets must be two or more rising ratios, over 0 and at most 1, or none"),
        ({"budgets": [0.5, 0.4]}, "budgets must be two or more rising ratios"),
        ({"budgets": [0.5, 1.4]}, "budgets must be two or more rising ratios"),
        ({"budgets": ["a", 1]}, "budgets must be numbers, measured and allocation pairs of numbers"),
        ({"measured": [1, 2]}, "budgets must be numbers, measured and allocation pairs of numbers"),
        ({"measured": [[0.5, 0.5], [0.4, 0.6]]}, "measured must be of rising settings"),
        ({"allocation": [[500, 0.5], [100, 0.5]]}, "allocation must be of rising timesteps"),
        ({"allocation": [[500, 0.1]]}, "allocation must be of ratios in the range of budgets"),
        ({"budgets": [0.3, 0.7, 1.0]}, "budget.table"),
    ],
)
def test_a_damaged_file_is_one_line(tiny_dynamic: DyDiT, tmp_path: Path, change: dict[str, object], message: str) -> None:
    write(ranged(tiny_dynamic), tmp_path / "range")
    file = tmp_path / "range/config.json"
    header = json.loads(file.read_text())
    header["model"].update(change)
    file.write_text(json.dumps(header))
    with pytest.raises(DyditError, match=message) as error:
        read(tmp_path / "range")
    assert "\n" not in str(error.value)


def test_ratios_by_timestep_are_each_timesteps_own(any_dynamic: DynamicBackbone) -> None:
    """Masked and sparse, in a batch of mixed timesteps, and over until a ratio for all is set."""
    model = trained_like(any_dynamic)
    x, t, y = inputs(model.config)
    pairs = list(zip(sorted(t.tolist()), (0.3, 0.9, 0.5, 1.0), strict=True))
    model.set_allocation(pairs)
    together = model(x, t, y)
    torch.testing.assert_close(executor(model, "sparse")(x, t, y), together, rtol=1e-4, atol=1e-4)
    for i in range(len(x)):
        model.set_flops_ratio(dict(pairs)[t[i].item()])
        torch.testing.assert_close(together[i], model(x[i : i + 1], t[i : i + 1], y[i : i + 1])[0], rtol=1e-4, atol=1e-5)


def test_what_is_spent_goes_where_it_brings_most() -> None:
    levels = [0.0, 0.5, 1.0]
    costs = np.tile(levels, (3, 1)) / 3
    distances = np.array([[4.0, 1.0, 0.0], [3.0, 3.0, 0.0], [0.1, 0.05, 0.0]])
    assert cheapest(distances, costs, levels, 0.5 / 3) == [0.5, 0, 0]
    assert cheapest(distances, costs, levels, 1.0 / 3) == pytest.approx([0.5, 0.5, 0])  # its middle is over the hull
    assert cheapest(distances, costs, levels, 2.25 / 3) == pytest.approx([1.0, 1.0, 0.25])
    assert cheapest(distances, costs, levels, 1.0) == pytest.approx([1.0, 1.0, 1.0])
    rising = np.array([[1.0, 2.0, 3.0]])  # dearer and worse
    assert cheapest(rising, costs[:1], levels, 1.0) == [0.0]


def test_an_allocation_is_stored_and_sampled_with(tmp_path: Path) -> None:
    plain = Checkpoint.of(trained_like(randomize(digits_dydit())), [])
    checkpoint = measure_range(plain, images=8, settings=FEW, device="cpu", most=12)
    allocated, result = allocate(checkpoint, 0.5, images=8, settings=FEW, device="cpu")
    assert result.distance <= result.even_distance
    assert abs(result.ratio - 0.5) < 0.03
    assert [ratio for _, ratio in result.pairs] == [ratio for _, ratio in allocated.config.allocation]  # type: ignore[attr-defined]
    write(allocated, tmp_path / "allocated")
    again = read(tmp_path / "allocated").build()
    assert isinstance(again, DynamicBackbone)
    assert sampled_ratio(again, 8, FEW, 0) == pytest.approx(result.ratio)
    even = read(tmp_path / "allocated", LoadOptions(flops_ratio=0.5))
    assert even.config.to_dict().get("allocation") is None
    with pytest.raises(DyditError, match="out of the model's range"):
        allocate(checkpoint, 0.1, device="cpu")
    with pytest.raises(DyditError, match="is a static model, which has no ratios to allocate"):
        allocate(read("digits-dit"), 0.5, device="cpu")


@pytest.mark.parametrize("routing", ["prefix", "linear"])
def test_a_prefix_is_the_first_ones_at_every_ratio(routing: str) -> None:
    config = replace(DyDiTConfig.from_static(TINY, token_router_reduction=4), width_routing=routing)
    model = trained_like(randomize(DyDiT(config)))
    batch, before = inputs(config), None
    nested = []
    for ratio in (0.2, 0.4, 0.6, 0.8, 1.0):
        model.set_flops_ratio(ratio)
        _, routed = model(*batch, return_routing=True)
        masks = torch.cat([routed.heads, routed.groups])  # 2L B H
        nested.append(bool((masks[..., 1:] <= masks[..., :-1]).all() and (before is None or (before <= masks).all())))
        before = masks
    assert all(nested) == (routing == "prefix")


@pytest.mark.parametrize("name", ["digits-dit", "fashion-dit"])
def test_a_converted_model_with_prefix_routers_computes_what_it_did(name: str, tmp_path: Path) -> None:
    """All heads and groups are on at all timesteps: the logit is over the highest threshold."""
    convert(name, tmp_path / "dydit", width_routing="prefix")
    model = read(tmp_path / "dydit").build().float()
    assert isinstance(model, DynamicBackbone)
    heads, groups = width_masks(model, range(0, 1000, 37))
    assert heads.all()
    assert groups.all()


# training


def a_recipe(steps: int = 8, **train: object) -> Recipe:
    values = {"steps": steps, "batch_size": 32, "lr": 1e-3, "ema_decay": 0.5, "teacher_weight": 1.0, "save_every": 3, **train}
    routing = {"flops_ratio": 0.3, "largest_ratio": 1.0, "hold_steps": 0, "warmup_steps": 4, "router_lr": 0.05}
    return recipe_from_dict({"train": values, "routing": routing, "calibration": {"steps": 5}}, "test")


def test_a_batch_has_the_smallest_ratio_the_largest_and_others_between() -> None:
    """Each with timesteps of all strata, and as many samples."""
    model = ranged(digits_dydit(), 0.3).build()
    draw = TrainingBatches(load_data("digits"), model.config, a_recipe())
    seen = [draw(step) for step in range(6)]
    for batch in seen[4:]:  # where the warm-up is over
        assert batch.ratios is not None
        assert batch.group is not None
        assert batch.ratios[[0, -1]].tolist() == pytest.approx([0.3, 1.0])
        assert 0.3 < batch.ratios[1] < 0.65 < batch.ratios[2] < 1
        assert batch.group.bincount().tolist() == [8, 8, 8, 8]
        for group in range(4):
            strata = (batch.t[batch.group == group] // 250).bincount(minlength=4)
            assert strata.tolist() == [2, 2, 2, 2]
    assert seen[4].ratios is not None
    assert not torch.equal(seen[4].ratios, seen[5].ratios)  # type: ignore[arg-type]
    assert seen[0].ratios is not None
    assert seen[0].ratios.tolist() == [1.0] * 4


def test_each_group_has_its_own_ratio_and_the_largest_is_the_complete_model() -> None:
    model = trained_like(randomize(digits_dydit())).train()
    batch = TrainingBatches(load_data("digits"), model.config, a_recipe())
    for step in range(4):
        batch(step)
    drawn = batch(4)
    ratio = Objective(model, a_recipe().train)(drawn).ratio
    means = [ratio[drawn.group == group].mean().item() for group in range(4)]
    assert means == sorted(means)
    assert means[-1] == 1
    x = torch.randn(32, 1, 8, 8)
    noise = GateNoise.draw(model.config, 32, torch.Generator().manual_seed(0), 1.0)
    out, routing = model(x, drawn.t, drawn.y, return_routing=True, gate_noise=noise)
    largest = drawn.group == 3
    assert all(mask[:, largest].all() for mask in (routing.heads, routing.groups, routing.tokens))
    torch.testing.assert_close(out[largest], model(x, drawn.t, drawn.y, complete=True)[largest])


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("start") / "start")


def assert_same(a: Path, b: Path, tolerance: float = 0.0) -> None:
    weights, others = read(a).weights, read(b).weights
    assert weights.keys() == others.keys()
    assert max((weights[name] - others[name]).abs().max().item() for name in weights) <= tolerance


def test_training_is_the_same_in_parts_and_after_an_interruption(start: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    finetune(start, tmp_path / "one", recipe=a_recipe(), device="cpu")
    finetune(start, tmp_path / "parts", recipe=a_recipe(accumulation=4), device="cpu")
    assert_same(tmp_path / "one", tmp_path / "parts", 1e-5)
    taken: list[int] = []
    stop = lambda: len(taken) == 5  # noqa: E731
    finetune(start, tmp_path / "two", recipe=a_recipe(), device="cpu", on_step=lambda m: taken.append(m.step), should_stop=stop)
    finetune(start, tmp_path / "two", recipe=a_recipe(), device="cpu")
    assert_same(tmp_path / "one", tmp_path / "two")
    config = read(tmp_path / "one").config.to_dict()
    assert config["budgets"] == pytest.approx([0.3, 0.475, 0.65, 0.825, 1.0])
    assert len(config["measured"]) >= 9
    assert read(tmp_path / "one").lineage[-2]["flops_ratios"] == [0.3, 1.0]


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ((0.5, 1.2), "FLOPs ratio 1.2; it must be over 0 and at most 1"),
        ((0.7, 0.3), "FLOPs ratios 0.7:0.3; give the smaller one first"),
    ],
)
def test_a_range_that_is_none_is_one_line(start: Path, tmp_path: Path, ratios: tuple[float, float], message: str) -> None:
    with pytest.raises(DyditError, match=message):
        finetune(start, tmp_path / "out", flops_ratio=ratios, steps=1, device="cpu")
    assert not (tmp_path / "out").exists()
