"""Checkpoint folders: round trips, damage, ranking and conversion."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dydit_cli
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.read import read
from dydit_cli.compress.convert import convert, default_biases
from dydit_cli.compress.structures import rank_block
from dydit_cli.errors import DyditError
from dydit_cli.files import atomic_file, atomic_folder, write_text
from dydit_cli.model.backbone import Backbone
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.execution import SparseModel
from dydit_cli.model.families import build_model, with_routers
from dydit_cli.model.families.dit import DiT, DyDiT
from dydit_cli.model.routers import WidthRouter
from tests.conftest import TINY, inputs, no_room


@pytest.fixture
def static_folder(tmp_path: Path, tiny_static: DiT) -> Path:
    write(Checkpoint.of(tiny_static, [{"action": "pretrain", "steps": 3}]), tmp_path / "static")
    return tmp_path / "static"


def test_round_trip_is_bit_exact(tmp_path: Path, tiny_static: DiT, tiny_dynamic: DyDiT) -> None:
    for model in (tiny_static, tiny_dynamic):
        checkpoint = Checkpoint.of(model, [{"action": "pretrain"}])
        write(checkpoint, tmp_path / "there")
        back = read(tmp_path / "there")
        assert back.config == checkpoint.config
        assert back.lineage == checkpoint.lineage
        assert back.weights.keys() == checkpoint.weights.keys()
        assert all(torch.equal(back.weights[name], w) for name, w in checkpoint.weights.items())
        x, t, y = inputs(TINY)
        assert torch.equal(back.build()(x, t, y), model(x, t, y))


def test_load_by_execution(tmp_path: Path, tiny_dynamic: DyDiT) -> None:
    write(Checkpoint.of(tiny_dynamic, []), tmp_path / "there")
    assert isinstance(dydit_cli.load(tmp_path / "there"), DyDiT)
    assert isinstance(dydit_cli.load(tmp_path / "there", execution="sparse"), SparseModel)


def edit_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        header = json.loads(path.read_text())
        change(header)
        path.write_text(json.dumps(header))

    return damage


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        weights = {name: w.clone() for name, w in load_file(path).items()}
        change(weights)
        save_file(weights, path)

    return damage


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "not a whole checkpoint: it has no model.safetensors"),
    "no config": (
        lambda f: (f / "config.json").unlink(),
        "could be of family dit or sit: say which with --family dit|sit",
    ),
    "cut weights": (cut("model.safetensors"), "model.safetensors: damaged"),
    "cut config": (cut("config.json"), "config.json: not readable as JSON"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "config.json: not readable as JSON"),
    "other config": (
        lambda f: (f / "config.json").write_text('{"a": 1}'),
        "neither a dydit nor a diffusers DiTTransformer2DModel configuration",
    ),
    "newer": (edit_config(lambda h: h.update(format_version=3)), "format version 3; this dydit reads up to 2"),
    "lineage": (edit_config(lambda h: h.update(lineage="mother")), '"lineage" must be a list of objects'),
    "other depth": (
        edit_config(lambda h: h["model"].update(depth=4)),
        "the weights have 3 blocks where the configuration says 4",
    ),
    "other classes": (
        edit_config(lambda h: h["model"].update(num_classes=5)),
        "y_embedder.embedding_table.weight is [11, 24] where [6, 24] is wanted",
    ),
    "unknown key": (edit_weights(lambda w: w.update(extra=torch.ones(2))), "unknown extra"),
    "missing key": (edit_weights(lambda w: w.pop("x_embedder.proj.bias")), "missing x_embedder.proj.bias"),
    "NaN": (edit_weights(lambda w: w["x_embedder.proj.bias"].fill_(float("nan"))), "x_embedder.proj.bias holds NaN or Inf"),
    "integers": (
        edit_weights(lambda w: w.update({"x_embedder.proj.bias": torch.ones(24, dtype=torch.int64)})),
        "x_embedder.proj.bias is int64; weights are floating point",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_in_one_line(static_folder: Path, damage: str) -> None:
    do, message = DAMAGE[damage]
    do(static_folder)
    with pytest.raises(DyditError) as error:
        read(static_folder)
    assert message in str(error.value)
    assert str(static_folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_foreign_paths(tmp_path: Path) -> None:
    kinds = "a folder, a .pt or .safetensors file, or a bundled one: digits-dit, digits-sit, fashion-dit"
    with pytest.raises(DyditError, match=f"no such checkpoint; give {kinds}"):
        read(tmp_path / "nowhere")
    (tmp_path / "file").write_text("hello")
    with pytest.raises(DyditError, match=r"not a checkpoint; give a folder, a \.pt or a \.safetensors file"):
        read(tmp_path / "file")


def test_a_failed_write_leaves_the_old_one(tmp_path: Path, static_folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in static_folder.iterdir()}
    with no_room(30_000), pytest.raises(DyditError, match="cannot be written: File too large"):
        write(Checkpoint.of(DiT(TINY), []), static_folder)
    assert {path.name: path.read_bytes() for path in static_folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["static"]


def test_atomic_writers_leave_nothing_behind_on_failure(tmp_path: Path) -> None:
    for writer in (atomic_file, atomic_folder):
        with pytest.raises(RuntimeError), writer(tmp_path / "thing"):
            raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    write_text(tmp_path / "thing", "a")
    assert (tmp_path / "thing").stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def rank(weights: dict[str, torch.Tensor], config: ModelConfig) -> dict[str, torch.Tensor]:
    """Every block ranked by magnitude."""
    ranked = dict(weights)
    for i in range(config.depth):
        ranked |= rank_block(weights, i, config, "magnitude")
    return ranked


def test_ranking_is_a_permutation_in_descending_order(any_static: Backbone) -> None:
    config = any_static.config
    weights = any_static.state_dict()
    ranked = rank(weights, config)
    for i in range(config.depth):
        heads, channels = (site.magnitude(ranked, f"blocks.{i}") for site in config.sites(i))
        assert torch.equal(heads, heads.sort(descending=True).values)
        assert torch.equal(channels, channels.sort(descending=True).values)
    for name, weight in weights.items():
        assert torch.equal(ranked[name].flatten().sort().values, weight.flatten().sort().values)
    assert any(not torch.equal(ranked[name], weights[name]) for name in weights)


def test_ranking_preserves_the_function(any_static: Backbone) -> None:
    config = any_static.config
    ranked = build_model(config)
    ranked.load_state_dict(rank(any_static.state_dict(), config))
    x, t, y = inputs(config, batch=8)
    with torch.no_grad():
        assert (ranked.eval()(x, t, y) - any_static(x, t, y)).abs().max() < 1e-4


def test_permutations_have_inverses(any_static: Backbone) -> None:
    config = any_static.config
    weights = any_static.state_dict()
    heads = torch.tensor([2, 0, 1])
    channels = torch.randperm(config.mlp_hidden, generator=torch.Generator().manual_seed(0))
    attention, mlp = config.sites(1)
    moved = {**weights, **attention.select(weights, "blocks.1", heads), **mlp.select(weights, "blocks.1", channels)}
    back = {
        **attention.select(moved, "blocks.1", heads.argsort()),
        **mlp.select(moved, "blocks.1", channels.argsort()),
    }
    assert all(torch.equal(w, weights[name]) for name, w in back.items())


@pytest.mark.parametrize("ranking", ["magnitude", "none"])
def test_conversion_keeps_the_function(tmp_path: Path, any_static: Backbone, ranking: str) -> None:
    write(Checkpoint.of(any_static, [{"action": "pretrain"}]), tmp_path / "static")
    # the fixture's inputs to the routers are far larger than a trained model's, so the biases are too
    report = convert(tmp_path / "static", tmp_path / "out", ranking=ranking, router_bias=50, token_router_bias=99)
    assert report.max_difference < 1e-4
    converted = read(tmp_path / "out")
    assert converted.config == with_routers(any_static.config)
    assert [entry["action"] for entry in converted.lineage] == ["pretrain", "convert"]
    x, t, y = inputs(any_static.config, batch=8)
    with torch.no_grad():
        assert (converted.build()(x, t, y) - any_static(x, t, y)).abs().max() < 1e-4
    routers = 2 * (24 * 2 + 2) + 24 + 1 + 1 + 1
    assert report.parameters_dynamic - report.parameters_static == any_static.config.depth * routers


def test_conversion_that_changes_the_function_is_refused(static_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DyditError, match=r"differs from the static model by .* raise --router-bias \(now -50\)"):
        convert(static_folder, tmp_path / "out", router_bias=-50)
    assert not (tmp_path / "out").exists()


def test_lineage_names_the_source_and_its_digest(static_folder: Path, tmp_path: Path) -> None:
    convert(static_folder, tmp_path / "out", router_bias=50, token_router_bias=99)
    step = read(tmp_path / "out").lineage[-1]
    digest = hashlib.sha256((static_folder / "model.safetensors").read_bytes()).hexdigest()
    assert (step["action"], step["source"], step["sha256"]) == ("convert", str(static_folder), digest)
    assert step["dydit"] == dydit_cli.__version__
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("A Dynamic Diffusion Transformer (DyDiT)", "depth 3, width 24, 3 heads", "2. convert: source", "CC-BY-NC"):
        assert text in card


def test_a_router_that_starts_off_anywhere_is_refused(static_folder: Path, tmp_path: Path) -> None:
    """Random inputs show a few timesteps; the width routers are asked at all thousand."""
    with pytest.raises(DyditError, match=r"routers of \d+ blocks and timesteps and of 0 tokens start switched off"):
        convert(static_folder, tmp_path / "out", router_bias=0, token_router_bias=99)
    assert not (tmp_path / "out").exists()


def test_conversion_is_deterministic(static_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert(static_folder, tmp_path / name, router_bias=50, token_router_bias=99, seed=3)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_a_bias_that_random_weights_outweigh_is_raised(tmp_path: Path) -> None:
    """Unless one was asked for: then it is refused, with what would mend it."""
    assert convert("digits-dit", tmp_path / "0", seed=0).token_router_bias == 10
    raised = convert("digits-dit", tmp_path / "1", seed=1)
    assert raised.token_router_bias == 20
    assert raised.max_difference < 1e-4
    with pytest.raises(DyditError, match=r"and of \d\d+ tokens start switched off; .*--token-router-bias \(now 10\)"):
        convert("digits-dit", tmp_path / "2", seed=1, token_router_bias=10)
    assert not (tmp_path / "2").exists()


def test_width_routers_whose_random_weights_outweigh_the_bias_begin_with_smaller_ones(tmp_path: Path) -> None:
    """The timestep embeddings of fashion-dit are a dozen times longer than those of digits-dit."""
    report = convert("fashion-dit", tmp_path / "out")
    assert (report.router_bias, report.token_router_bias) == (5, 10)
    assert report.max_difference < 1e-4
    dynamic = read(tmp_path / "out").build().float()  # its static weights are stored in half precision
    assert isinstance(dynamic, DyDiT)
    e = dynamic.t_embedder(torch.arange(1000))  # 1000 C
    routers = [module.router for module in dynamic.modules() if isinstance(module, WidthRouter)]
    lowest = [router(e).min().item() for router in routers]
    assert min(lowest) == pytest.approx(2.5, abs=1e-4)  # half the bias


def test_converting_a_dydit_or_over_something_is_refused(static_folder: Path, tmp_path: Path, tiny_dynamic: DyDiT) -> None:
    write(Checkpoint.of(tiny_dynamic, []), tmp_path / "dynamic")
    with pytest.raises(DyditError, match="is a DyDiT already; fine-tune it: dydit finetune"):
        convert(tmp_path / "dynamic", tmp_path / "out")
    with pytest.raises(DyditError, match="already exists; choose another name or replace it with --force"):
        convert(static_folder, tmp_path / "dynamic")
    with pytest.raises(DyditError, match="no ranking 'size'; choose one of magnitude, none"):
        convert(static_folder, tmp_path / "out", ranking="size")
    convert(static_folder, tmp_path / "dynamic", router_bias=50, token_router_bias=99, force=True)
    assert read(tmp_path / "dynamic").lineage[-1]["action"] == "convert"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dynamic", "static"]


def test_biases_are_the_papers_except_for_narrow_models() -> None:
    assert default_biases(1152) == (15.0, 35.0)
    assert default_biases(96) == (5.0, 10.0)
