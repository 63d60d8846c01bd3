"""One step: its batch, its losses, its parts, and what an ablation fixes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dydit_cli.artifacts.run import StepMetrics
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.compress.prune import prune
from dydit_cli.data.load import load_data
from dydit_cli.distributed import Distributed
from dydit_cli.errors import DyditError
from dydit_cli.model.families import config_from_dict
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT, DyDiTConfig
from dydit_cli.model.families.dit_blocks import DynamicBlock
from dydit_cli.model.routers import GateNoise
from dydit_cli.train.batch import Batch, TrainingBatches, complete_samples
from dydit_cli.train.loop import frozen, train
from dydit_cli.train.objective import LossWeights, Objective, SampleLosses, block_distance
from dydit_cli.train.recipe import Recipe, RoutingRecipe, read_recipe, with_settings
from dydit_cli.train.run import finetune, random_start
from dydit_cli.train.step import Trainer
from tests.conftest import randomize
from tests.unit.test_train import DIGITS, digits_dydit, quick


def a_batch(model: DiT, size: int = 8, **routing: object) -> Batch:
    return TrainingBatches(load_data("digits"), model.config, with_settings(quick(9, **routing), {"train.batch_size": size}))(0)


def gradients(model: DiT, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [p for _, p in model.trainable()]))


def test_parts_of_a_batch_add_up_to_the_gradient_of_the_squared_mean() -> None:
    """Mixed timesteps may be spent on unevenly: only their mean counts, that of all parts together."""
    model = randomize(digits_dydit()).train()
    batch = a_batch(model, 8, complete_steps=1)
    objective = Objective(model, quick().train)
    whole = objective(batch)
    assert whole.ratio is not None
    assert whole.complete is not None
    ratio = whole.ratio.mean()
    assert whole.ratio.std() > 0.01
    loss = (whole.mse + whole.vb).mean() + 2 * (ratio - 0.3) ** 2 + 3 * whole.complete.mean()
    weights = LossWeights(samples=8, complete_samples=8, flops=2.0, complete=3.0, teacher=0.0)
    parts = [objective(batch.select(slice(i, i + 2))) for i in range(0, 8, 2)]
    excess = ratio - 0.3
    total = torch.stack([weights.part(part, excess.expand(2)) for part in parts]).sum()
    for ours, true in zip(gradients(model, total), gradients(model, loss), strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-4, atol=1e-5)
    means = weights.means({name: value.item() for name, value in whole.sums().items()}, excess.item() ** 2)
    assert means["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert means["ratio"] == pytest.approx(ratio.item(), rel=1e-5)


def test_the_ratio_without_graphs_is_that_of_the_training_pass() -> None:
    model = randomize(digits_dydit()).train()
    batch, objective = a_batch(model), Objective(model, quick().train)
    assert torch.equal(objective.ratio(batch), objective(batch).ratio)
    assert not objective.ratio(batch).requires_grad


def test_the_complete_pass_is_the_static_models() -> None:
    model = randomize(digits_dydit()).train()
    batch = a_batch(model, complete_steps=1)
    losses: SampleLosses = Objective(model, quick().train)(batch)
    static = DiT(DIGITS)
    static.load_state_dict({name: w for name, w in model.state_dict().items() if name in static.state_dict()})
    alone: SampleLosses = Objective(static, quick().train)(replace(batch, gates=None, complete=None))
    assert losses.complete is not None
    torch.testing.assert_close(losses.complete, alone.mse + alone.vb)
    assert alone.ratio is None
    assert a_batch(model, complete_steps=0).complete is None


def test_min_snr_weighs_the_noise_error_of_each_timestep_alone() -> None:
    """Held against SNR and its clamp written out by hand; the variational term and the ratio stay as they were."""
    model = randomize(digits_dydit()).train()
    batch, recipe = a_batch(model, complete_steps=1), quick().train
    plain, weighted = (Objective(model, r, teacher=model)(batch) for r in (recipe, recipe.model_copy(update={"min_snr": 5.0})))
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[batch.t.numpy()]
    snr = alpha_bar / (1 - alpha_bar)
    weights = torch.from_numpy(np.minimum(snr, 5) / snr).float()
    assert weights.min() < 0.9
    assert weights.max() == 1
    torch.testing.assert_close(weighted.mse, plain.mse * weights)
    torch.testing.assert_close(weighted.teacher, plain.teacher * weights)
    assert plain.complete is not None
    assert weighted.complete is not None
    assert ((weighted.complete < plain.complete) == (weights < 1)).all()
    assert torch.equal(weighted.vb, plain.vb)
    assert torch.equal(weighted.ratio, plain.ratio)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25, 1 / 3])
def test_a_part_of_the_complete_pass_covers_strata_and_in_time_every_sample(share: float) -> None:
    routing = RoutingRecipe(complete_steps=9, complete_share=share, complete_every=2)
    chosen = torch.stack([complete_samples(24, routing, 4, step) for step in range(0, 24, 2)])
    assert chosen.sum(dim=1).tolist() == [round(24 * share)] * 12
    strata = torch.arange(24) % 4
    assert all(set(strata[row].tolist()) == {0, 1, 2, 3} for row in chosen)
    assert chosen.any(dim=0).all()


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(DyditError, match=r"routing.complete_share 0.1 of 8 images is none; raise one of them"):
        a_batch(digits_dydit(), complete_steps=1, complete_share=0.1)


def test_the_complete_pass_on_every_second_step_weighs_double() -> None:
    seen: list[StepMetrics] = []
    train(digits_dydit(), load_data("digits"), quick(5, complete_steps=4, complete_every=2), on_step=seen.append)
    assert [m.complete_loss is None for m in seen] == [False, True, False, True, True]
    for m in seen:
        assert m.ratio is not None
        assert m.target is not None
        rest = m.mse + m.vb + 2 * (m.ratio - m.target) ** 2
        assert m.loss == pytest.approx(rest + 2 * (m.complete_loss or 0.0), rel=1e-5)


def test_the_start_model_is_a_target_that_stays() -> None:
    model, seen = digits_dydit(bias=40.0), list[StepMetrics]()
    with torch.no_grad():
        torch.nn.init.normal_(model.final_layer.linear.weight, std=0.1)
    before = frozen(model)
    train(model, load_data("digits"), with_settings(quick(3), {"train.teacher_weight": 5.0}), on_step=seen.append)
    losses = [m.teacher_loss for m in seen]
    assert losses[0] == pytest.approx(0.0, abs=1e-9)  # everything is on, so it is its own teacher
    assert "block_loss" not in seen[0].to_dict()
    assert losses[2] is not None
    assert losses[2] > 1e-6
    assert seen[2].loss - seen[2].mse - seen[2].vb > 4.9 * losses[2]
    assert all(not p.requires_grad for p in before.parameters())


def test_another_model_teaches_a_static_one(tmp_path: Path) -> None:
    """With the data's own weight at 0 the pruned model learns nothing but what the teacher says."""
    prune("digits-dit", tmp_path / "pruned", keep=0.7)
    settings = {"train.teacher": "digits-dit", "train.teacher_weight": 1.0, "train.data_weight": 0.0, "train.lr": 3e-4}
    recipe = with_settings(quick(20), settings)
    seen = list[StepMetrics]()
    finetune(tmp_path / "pruned", tmp_path / "run", recipe=recipe, on_step=seen.append)
    first, last = ([m.teacher_loss or 0.0 for m in seen[part]] for part in (slice(5), slice(-5, None)))
    assert 0 < sum(last) < 0.8 * sum(first)
    assert all(m.loss == pytest.approx((m.teacher_loss or 0.0) + m.vb, rel=1e-5) for m in seen)


@pytest.mark.parametrize(("method", "blocks"), [("magnitude", 6), ("depth", 3)])
def test_the_teachers_blocks_are_a_target(tmp_path: Path, method: str, blocks: int) -> None:
    """Also of a model that has half of them: its last block's is the teacher's last."""
    prune("digits-dit", tmp_path / "pruned", method=method, keep=0.5, batches=1)
    settings = {"train.teacher": "digits-dit", "train.teacher_weight": 1.0, "train.block_weight": 1.0, "train.lr": 3e-4}
    seen = list[StepMetrics]()
    finetune(tmp_path / "pruned", tmp_path / "run", recipe=with_settings(quick(20), settings), on_step=seen.append)
    assert read(tmp_path / "run").config.depth == blocks
    first, last = ([m.block_loss or 0.0 for m in seen[part]] for part in (slice(5), slice(-5, None)))
    assert 0 < sum(last) < 0.9 * sum(first)
    assert all(m.loss == pytest.approx(m.mse + m.vb + (m.teacher_loss or 0) + (m.block_loss or 0), rel=1e-5) for m in seen)


def test_the_distance_of_blocks_is_relative() -> None:
    outputs = [torch.full((2, 3, 4), 2.0), torch.full((2, 3, 4), 5.0)]
    teacher = [torch.full((2, 3, 4), value) for value in (9.0, 1.0, 9.0, 4.0)]
    expected = torch.full((2,), ((2 - 1) ** 2 / 1**2 + (5 - 4) ** 2 / 4**2) / 2)
    torch.testing.assert_close(block_distance(outputs, teacher), expected)
    torch.testing.assert_close(block_distance([7 * h for h in outputs], [7 * h for h in teacher]), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.data_weight": 0}, "both 0: nothing is learned"),
        ({"train.block_weight": 1}, "train.block_weight needs a train.teacher_weight over 0"),
        ({"train.teacher": "digits-dit"}, "train.teacher needs a train.teacher_weight over 0"),
        ({"train.teacher": "digits-sit", "train.teacher_weight": 1}, "its process is flow, and the model's is gaussian"),
    ],
)
def test_what_cannot_teach_is_one_line(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(DyditError, match=message):
        finetune("digits-dit", tmp_path / "run", recipe=quick(1), settings=settings)
    assert not (tmp_path / "run").exists()


def test_blocks_of_another_width_cannot_teach(tmp_path: Path) -> None:
    config = read("digits-dit").config
    assert isinstance(config, DiTConfig)
    narrow = DiT(replace(config, hidden_size=48, depth=2))
    write(Checkpoint.of(narrow, []), tmp_path / "narrow")
    settings = {"train.teacher": str(tmp_path / "narrow"), "train.teacher_weight": 1, "train.block_weight": 1}
    with pytest.raises(DyditError, match="the teacher has 2 blocks of width 48 and the model 6 of 96; it is for models of one"):
        finetune("digits-dit", tmp_path / "run", recipe=quick(1), settings=settings)


def test_pretraining_has_the_teacher_that_its_recipe_names() -> None:
    recipe = read_recipe("digits/pretrain")
    assert random_start(recipe).teacher is None
    taught = random_start(with_settings(recipe, {"train.teacher": "digits-dit", "train.teacher_weight": 1.0})).teacher
    assert taught is not None
    assert taught.config == read("digits-dit").config


def test_noise_from_outside_is_what_the_model_draws_itself() -> None:
    model = randomize(digits_dydit()).train()
    assert isinstance(model, DyDiT)
    batch = a_batch(model)
    torch.manual_seed(7)
    own, routing = model(batch.x0, batch.t, batch.y, return_routing=True)
    noise = GateNoise.draw(model.config, 8, torch.Generator().manual_seed(7))
    given, same = model(batch.x0, batch.t, batch.y, return_routing=True, gate_noise=noise)
    assert torch.equal(own, given)
    assert torch.equal(routing.tokens, same.tokens)
    assert 0 < routing.heads.mean() < 1


def test_parts_of_a_draw_are_the_whole_draw() -> None:
    recipe = with_settings(quick(9, complete_steps=9, complete_share=0.5, noise_off_steps=6), {"train.batch_size": 8})
    config, data = digits_dydit().config, load_data("digits")
    draws = [TrainingBatches(data, config, recipe, part) for part in (slice(None), slice(0, 4), slice(4, 8))]
    for step in range(3):
        whole, *parts = (draw(step) for draw in draws)
        for name in ("x0", "t", "y", "noise", "complete"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts])), name
        assert whole.gates is not None
        for name in ("heads", "groups", "tokens"):
            both = torch.cat([getattr(part.gates, name) for part in parts], dim=1)
            assert torch.equal(getattr(whole.gates, name), both), name


def outcome(model: DiT, recipe: Recipe) -> tuple[list[StepMetrics], dict[str, torch.Tensor]]:
    seen: list[StepMetrics] = []
    train(model, load_data("digits"), recipe, on_step=seen.append)
    return seen, {name: p.detach() for name, p in model.named_parameters()}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_accumulation_changes_nothing() -> None:
    recipe = with_settings(
        quick(6, complete_steps=4, complete_share=0.5, weight=20.0, flops_ratio=0.5), {"train.ema_decay": 0.1}
    )
    whole, weights = outcome(digits_dydit(1.0), recipe)
    for pieces in (2, 4):
        cut, same = outcome(digits_dydit(1.0), with_settings(recipe, {"train.accumulation": pieces}))
        assert largest_difference(weights, same) < 1e-6
        for a, b in zip(whole, cut, strict=True):
            for name in ("loss", "ratio", "grad_norm", "mse", "vb"):
                assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-6, rel=1e-6), (a.step, name)
            assert (a.complete_loss or 0.0) == pytest.approx(b.complete_loss or 0.0, abs=1e-6)
    with pytest.raises(DyditError, match=r"train.batch_size 8 cannot be cut into 1 processes x 3 micro-batches"):
        outcome(digits_dydit(), with_settings(recipe, {"train.accumulation": 3}))


def test_checkpointed_gradients_are_the_same() -> None:
    recipe = quick(3, complete_steps=2)
    (_, plain), (_, checkpointed) = (
        outcome(digits_dydit(1.0), with_settings(recipe, {"train.gradient_checkpointing": on})) for on in (False, True)
    )
    assert largest_difference(plain, checkpointed) == 0
    model, calls = digits_dydit(), list[int]()
    engine = Trainer(model, with_settings(recipe, {"train.gradient_checkpointing": True}), Distributed())
    block = model.blocks[0]
    assert isinstance(block, DynamicBlock)
    block.attn.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    engine.step(a_batch(model), 0)
    assert len(calls) == 2  # once forward, once for the backward pass


def test_bf16_trains_nearly_alike() -> None:
    recipe = with_settings(quick(4, complete_steps=2), {"train.teacher_weight": 0.1})
    full, half = (outcome(digits_dydit(1.0), with_settings(recipe, {"train.precision": p})) for p in ("fp32", "bf16"))
    for a, b in zip(full[0], half[0], strict=True):
        assert b.loss == pytest.approx(a.loss, rel=0.05)
    assert full[0][-1].loss != half[0][-1].loss
    assert all(p.dtype == torch.float32 for p in half[1].values())


@pytest.mark.parametrize(("width", "tokens"), [("off", "learned"), ("learned", "off")])
def test_an_ablated_kind_of_routing_stays_fully_on(width: str, tokens: str) -> None:
    model = digits_dydit(0.0)
    train(
        model,
        load_data("digits"),
        with_settings(quick(20, weight=50.0, width=width, tokens=tokens), {"routing.router_lr": 0.1}),
    )
    batch = a_batch(model)
    _, routing = model(batch.x0, batch.t, batch.y, return_routing=True)
    on = {"width": (routing.heads.min() * routing.groups.min()).item() == 1, "tokens": routing.tokens.min().item() == 1}
    assert on == {"width": width == "off", "tokens": tokens == "off"}
    learned = {name for name, p in model.trainable() if model.config.is_router(name)}
    assert any(".token_selection." in name for name in learned) == (tokens == "learned")
    assert any(".attn_rate." in name for name in learned) == (width == "learned")


def test_random_routers_come_to_the_target_and_learn_nothing() -> None:
    model, seen = digits_dydit(), list[StepMetrics]()
    recipe = with_settings(
        quick(12, width="random", tokens="random", hold_steps=2, warmup_steps=4, flops_ratio=0.4), {"train.batch_size": 64}
    )
    train(model, load_data("digits"), recipe, on_step=seen.append)
    ratios = [m.ratio for m in seen]
    assert ratios[0] == pytest.approx(1.0)
    assert sum(r for r in ratios[-4:] if r is not None) / 4 == pytest.approx(0.4, abs=0.06)
    assert not [name for name, _ in model.trainable() if model.config.is_router(name)]
    batch = a_batch(model, 64)
    _, routing = model(batch.x0, batch.t, batch.y, return_routing=True)
    assert routing.heads.std(dim=1).max() > 0  # another choice at another timestep
    assert 0.3 < routing.tokens.mean() < 0.95


def test_whole_layers_are_skipped_by_one_decision() -> None:
    with pytest.raises(DyditError, match=r"routing.tokens is layers, and the model's token_routing is tokens"):
        train(digits_dydit(), load_data("digits"), quick(1, tokens="layers"))
    torch.manual_seed(0)
    model = DyDiT(DyDiTConfig.from_static(DIGITS, token_router_reduction=4, token_routing="layers"))
    model.reset_routers(0.0, 0.0)
    train(model, load_data("digits"), quick(2, tokens="layers"))
    batch = a_batch(model, 64)
    for reduced in (model.train(), model.eval()):
        _, routing = reduced(batch.x0, batch.t, batch.y, return_routing=True)
        shares = routing.tokens.mean(dim=2)
        assert set(shares.unique().tolist()) == {0.0, 1.0}
    assert config_from_dict(model.config.to_dict()) == model.config
