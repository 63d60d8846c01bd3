"""Recipes, data, the objective and the loop."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from dydit_cli.artifacts.run import StepMetrics
from dydit_cli.data.dataset import batches
from dydit_cli.data.digits import load_digits_split
from dydit_cli.data.load import load_data
from dydit_cli.diffusion.process import GaussianDiffusion
from dydit_cli.errors import DyditError
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT, DyDiTConfig
from dydit_cli.train.batch import TrainingBatches
from dydit_cli.train.loop import train
from dydit_cli.train.recipe import Recipe, RoutingRecipe, TrainRecipe, read_recipe, recipe_from_dict, with_settings, with_steps
from dydit_cli.train.step import Ema, learning_rate, make_optimizer
from tests.conftest import TINY

DIGITS = DiTConfig(input_size=8, patch_size=2, in_channels=1, hidden_size=32, depth=2, num_heads=4, num_classes=10)


def digits_dydit(bias: float = 3.0) -> DyDiT:
    torch.manual_seed(0)
    model = DyDiT(DyDiTConfig.from_static(DIGITS, token_router_reduction=4))
    model.reset_routers(bias, bias)
    return model


def quick(steps: int = 3, **routing: object) -> Recipe:
    phases = {"hold_steps": 0, "warmup_steps": 0, **routing}
    values = {"train": {"steps": steps, "batch_size": 8, "lr": 1e-3}, "routing": phases}
    return recipe_from_dict(values, "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nsteps = 5\nlearning_rte = 1", "unknown key 'train.learning_rte'"),
        ("[train]\nsteps = 5\nbatchsize = 1", "unknown key 'train.batchsize'; did you mean 'batch_size'?"),
        ("[train]\nlr = 1e-4", "'train.steps' is missing"),
        ("[train]\nsteps = 0", "'train.steps': input should be greater than 0, not 0"),
        ("[train]\nsteps = 5\n[routing]\nflops_ratio = 1.5", "'routing.flops_ratio': input should be less than or equal to 1"),
        ("[train]\nsteps = 5\nlr_warmup_steps = 9", "train.lr_warmup_steps is over train.steps"),
        ("steps = = 5", "not a readable TOML recipe"),
    ],
)
def test_a_bad_recipe_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(DyditError) as error:
        read_recipe(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))


def test_settings_replace_single_values() -> None:
    recipe = with_settings(quick(), ["train.lr=3e-5", "routing.router_lr = 0.5", "data=digits"])
    assert (recipe.train.lr, recipe.routing.router_lr, recipe.data) == (3e-5, 0.5, "digits")
    for text, message in (
        ("train.lr", "--set train.lr: write it as KEY=VALUE"),
        ("tran.lr=1", "--set: unknown key 'tran'; did you mean 'train'?"),
        ("train.lrr=1", "--set: unknown key 'train.lrr'; did you mean 'lr'?"),
        ("train.lr=fast", "--set: 'train.lr': input should be a valid number"),
    ):
        with pytest.raises(DyditError, match=message.replace("(", r"\(").replace("?", r"\?")):
            with_settings(quick(), [text])


def test_another_number_of_steps_stretches_the_phases() -> None:
    recipe = with_steps(quick(100, hold_steps=10, warmup_steps=50, complete_steps=20, noise_off_steps=30), 200)
    routing = recipe.routing
    assert (recipe.train.steps, routing.hold_steps, routing.warmup_steps) == (200, 20, 100)
    assert (routing.complete_steps, routing.noise_off_steps) == (40, 60)


def test_target_holds_then_falls_then_stays() -> None:
    recipe = RoutingRecipe(flops_ratio=0.5, hold_steps=100, warmup_steps=1000)
    targets = [recipe.target(step) for step in (0, 99, 100, 600, 1100, 5000)]
    assert targets == pytest.approx([1.0, 1.0, 1.0, 0.75, 0.5, 0.5])


def test_learning_rate_warms_up_and_falls_by_cosine() -> None:
    recipe = TrainRecipe(steps=110, lr_warmup_steps=10, lr_schedule="cosine")
    assert learning_rate(recipe, 0) == pytest.approx(0.1)
    assert learning_rate(recipe, 9) == 1.0
    assert learning_rate(recipe, 60) == pytest.approx(0.5)
    assert learning_rate(recipe, 110) == pytest.approx(0.0, abs=1e-6)
    assert learning_rate(TrainRecipe(steps=5), 4) == 1.0


def test_timesteps_cover_every_stratum() -> None:
    t = GaussianDiffusion().draw(4000, 4, torch.Generator().manual_seed(0))
    assert Counter((t // 250).tolist()) == {0: 1000, 1: 1000, 2: 1000, 3: 1000}
    assert t.min() >= 0
    assert t.max() <= 999
    assert GaussianDiffusion().draw(3, 4, torch.Generator()).shape == (3,)


def test_labels_are_dropped_to_the_null_class() -> None:
    y = TrainingBatches(load_data("digits"), DIGITS, with_settings(quick(), {"train.batch_size": 20_000}))(0).y
    assert set(y.tolist()) == set(range(11))
    assert (y == 10).float().mean().item() == pytest.approx(0.1, abs=0.01)


def test_digits_are_the_bundled_ones() -> None:
    training, held_out = load_digits_split(), load_digits_split(held_out=True)
    assert training.images.shape == (1437, 1, 8, 8)
    assert held_out.images.shape == (360, 1, 8, 8)
    assert (training.images.min().item(), training.images.max().item()) == (-1.0, 1.0)
    assert set(training.labels.tolist()) == set(range(10))
    with pytest.raises(DyditError, match="no data set 'cats'; choose one of digits"):
        load_data("cats")
    with pytest.raises(DyditError, match="digits has 8 pixels a side and the model 4; choose data that fit the model"):
        training.check(TINY)


def test_every_image_comes_once_an_epoch() -> None:
    data = load_digits_split()
    seen = torch.cat([labels for _, labels in islice(batches(data, 479, torch.Generator().manual_seed(0)), 3)])
    assert Counter(seen.tolist()) == Counter(data.labels.tolist())


def test_ema_averages_and_forgets_the_start() -> None:
    model = DiT(TINY)
    ema = Ema(model, 0.5)
    with torch.no_grad():
        model.x_embedder.proj.weight.fill_(1.0)
    for _ in range(40):
        ema.update(model)
    ema.copy_to(model)
    assert (model.x_embedder.proj.weight - 1).abs().max() < 1e-6


def test_routers_have_their_own_learning_rate() -> None:
    recipe = with_settings(quick(), {"routing.router_lr": 0.25})
    groups = make_optimizer(digits_dydit(), recipe).param_groups
    assert [group["lr"] for group in groups] == [1e-3, 0.25]
    assert len(groups[1]["params"]) == 8 * DIGITS.depth


def test_training_is_deterministic_and_leaves_ema_weights_in_evaluation_mode() -> None:
    models = [digits_dydit(), digits_dydit()]
    for model in models:
        assert train(model, load_data("digits"), quick(4)).steps == 4
        assert not model.training
    for (name, a), (_, b) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
        assert torch.equal(a, b), name
    trained, fresh = (model.get_parameter("blocks.0.mlp.fc1.weight") for model in (models[0], digits_dydit()))
    assert not torch.equal(trained, fresh)


def test_the_ratio_comes_down_to_the_target() -> None:
    model, seen = digits_dydit(bias=1.0), list[StepMetrics]()
    recipe = with_settings(quick(60, flops_ratio=0.5, weight=20.0), {"routing.router_lr": 0.05})
    train(model, load_data("digits"), recipe, on_step=seen.append)
    ratios = [m.ratio for m in seen if m.ratio is not None]
    assert ratios[0] > 0.6
    assert sum(ratios[-10:]) / 10 == pytest.approx(0.5, abs=0.05)


def test_static_models_have_no_ratio() -> None:
    seen: list[StepMetrics] = []
    train(DiT(DIGITS), load_data("digits"), quick(1), on_step=seen.append)
    assert (seen[0].ratio, seen[0].target, seen[0].complete_loss) == (None, None, None)


def test_guard_skips_steps_and_stops_after_a_hundred() -> None:
    model = digits_dydit()
    before = {name: p.clone() for name, p in model.named_parameters()}
    seen: list[StepMetrics] = []
    recipe = with_settings(quick(150), {"train.grad_limit": 1e-9, "train.batch_size": 2})
    result = train(model, load_data("digits"), recipe, on_step=seen.append)
    assert result.stopped is not None
    assert "100 steps in a row had a gradient norm over 1e-09 or not finite; lower train.lr" in result.stopped
    assert (result.steps, result.skipped, result.interrupted) == (100, 100, False)
    assert len(seen) == 100
    assert all(m.skipped for m in seen)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_gradient_that_is_not_finite_is_skipped() -> None:
    model = digits_dydit()
    with torch.no_grad():
        model.final_layer.linear.bias.fill_(math.inf)
    result = train(model, load_data("digits"), quick(1))
    assert result.skipped == 1


def test_an_interruption_keeps_what_was_learned() -> None:
    model, seen = DiT(DIGITS), list[StepMetrics]()
    result = train(model, load_data("digits"), quick(50), on_step=seen.append, should_stop=lambda: len(seen) == 5)
    assert (result.steps, result.interrupted) == (5, True)
    assert model.final_layer.linear.weight.abs().max() > 0
