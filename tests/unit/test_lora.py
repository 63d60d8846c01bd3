"""Adapters: what they compute, what is trained, and the file that keeps them apart."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dydit_cli.checkpoint import native
from dydit_cli.checkpoint.adapter import read_adapter
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import load, read
from dydit_cli.checkpoint.tensors import headers_alone
from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import Backbone
from dydit_cli.model.families import build_model, build_shapes, named_config, with_routers
from dydit_cli.model.families.dit import DyDiT, DyDiTConfig
from dydit_cli.model.lora import add_lora, is_adapter, merge_lora, site_linears
from dydit_cli.train.recipe import Recipe, recipe_from_dict, with_settings
from dydit_cli.train.run import finetune, resume
from tests.conftest import TINY, inputs, randomize
from tests.kill_resume import RECIPE, make_start

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 6


def a_recipe(**lora: Any) -> Recipe:
    values = {"train.steps": STEPS, "train.save_every": 2, "train.optimizer": "muon", "routing.complete_steps": 2}
    return with_settings(
        recipe_from_dict(RECIPE, "test"), {**values, "lora.rank": 2, **{f"lora.{k}": v for k, v in lora.items()}}
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained, that is not zero in adaLN, and with routers that are undecided."""
    folder = make_start(tmp_path_factory.mktemp("start") / "start")
    model = load(folder)
    assert isinstance(model, DyDiT)
    native.write(Checkpoint.of(randomize(model, scale=0.1), []), folder)
    return folder


@pytest.fixture(scope="module")
def merged(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "out"
    finetune(start, out, recipe=a_recipe(lr=1e-2), device="cpu")
    return out


@pytest.fixture(scope="module")
def apart(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, but for what it leaves."""
    out = tmp_path_factory.mktemp("apart") / "out"
    finetune(start, out, recipe=a_recipe(lr=1e-2, merge=False), device="cpu")
    return out


def randomized(model: Backbone) -> Backbone:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if is_adapter(name):
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return model


def test_adapters_begin_as_nothing_and_merge_into_what_they_computed(any_dynamic: Backbone) -> None:
    x, t, y = inputs(any_dynamic.config)
    before, names = any_dynamic(x, t, y), list(any_dynamic.state_dict())
    others = {name for name, _ in any_dynamic.trainable() if any_dynamic.config.is_router(name)}
    add_lora(any_dynamic, rank=2, alpha=6.0, seed=0)
    assert torch.equal(any_dynamic(x, t, y), before)
    learning = {name for name, _ in any_dynamic.trainable()}
    assert learning == others | {
        f"{n}.{part}.weight" for n in site_linears(any_dynamic.config) for part in ("lora_A", "lora_B")
    }
    assert len(site_linears(any_dynamic.config)) == 4 * any_dynamic.config.depth
    adapted = randomized(any_dynamic)(x, t, y)
    assert (adapted - before).abs().max() > 1e-2
    lora = merge_lora(any_dynamic)
    torch.testing.assert_close(any_dynamic(x, t, y), adapted, rtol=1e-4, atol=1e-5)
    assert list(any_dynamic.state_dict()) == names
    assert lora.scale == 3.0


def test_the_frozen_weights_stay(start: Path, merged: Path) -> None:
    before, after = read(start).weights, read(merged).weights
    touched = {f"{name}.weight" for name in site_linears(read(start).config)}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert touched <= changed
    assert all(name in touched or read(start).config.is_router(name) for name in changed)
    step = read(merged).lineage[-1]
    assert (step["action"], step["lora_rank"]) == ("finetune", 2)


def test_what_learns_is_counted(start: Path, tmp_path: Path) -> None:
    result = finetune(start, tmp_path / "out", recipe=a_recipe(), device="cpu", steps=1)
    config, checkpoint = read(start).config, read(start)
    adapters = sum(2 * sum(checkpoint.weights[f"{name}.weight"].shape) for name in site_linears(config))
    routers = sum(w.numel() for name, w in checkpoint.weights.items() if config.is_router(name))
    assert result.trained_parameters == adapters + routers
    assert result.parameters == adapters + sum(w.numel() for w in checkpoint.weights.values())


@pytest.mark.parametrize(("rank", "share"), [(4, 0.0079), (8, 0.0109), (16, 0.0168)])
def test_the_share_of_an_xl(rank: int, share: float) -> None:
    """As docs/pages/guides/lora.md has it."""
    shapes = build_shapes(with_routers(named_config("DiT-XL/2")))
    weights = shapes.state_dict()
    adapters = sum(rank * sum(weights[f"{name}.weight"].shape) for name in site_linears(shapes.config))
    routers = sum(w.numel() for name, w in weights.items() if shapes.config.is_router(name))
    assert (adapters + routers) / (shapes.num_parameters() + adapters) == pytest.approx(share, abs=5e-5)


def test_an_adapter_apart_is_the_same_model(start: Path, merged: Path, apart: Path) -> None:
    assert {path.name for path in apart.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "recipe.json",
    }  # fmt: skip
    one, other = read(merged), read(start, LoadOptions(adapter=str(apart)))
    assert other.config == one.config
    assert other.weights.keys() == one.weights.keys()
    assert all(torch.equal(w, one.weights[name]) for name, w in other.weights.items())
    assert [step["action"] for step in other.lineage] == [step["action"] for step in one.lineage]
    model, x = load(start, adapter=str(apart), execution="sparse"), inputs(one.config)
    torch.testing.assert_close(model(*x), load(merged)(*x), rtol=1e-4, atol=1e-5)


def test_headers_alone_tell_what_an_adapter_makes(start: Path, apart: Path) -> None:
    with headers_alone():
        shapes = read(start, LoadOptions(adapter=str(apart))).weights
    assert {name: w.shape for name, w in shapes.items()} == {name: w.shape for name, w in read(start).weights.items()}


@pytest.mark.parametrize("merge", [True, False])
def test_an_interrupted_run_ends_as_a_calm_one(start: Path, merged: Path, apart: Path, tmp_path: Path, merge: bool) -> None:
    calm, file = (merged, "model.safetensors") if merge else (apart, "adapter_model.safetensors")
    seen: list[int] = []
    options: dict[str, Any] = {"device": "cpu", "on_step": lambda metrics: seen.append(metrics.step)}
    halfway = finetune(
        start,
        tmp_path / "out",
        recipe=a_recipe(lr=1e-2, merge=merge),
        **options,
        should_stop=lambda: bool(seen) and seen[-1] == 3,
    )
    assert halfway.interrupted
    (state,) = sorted((tmp_path / "out" / "state").glob("step-*/tensors.safetensors"))[-1:]
    kept = [name for name in load_file(state) if name.startswith("model.")]
    assert kept
    assert not any(name.endswith((".qkv.weight", ".table.weight", ".qkv.bias")) for name in kept)
    assert resume(tmp_path / "out", **options).steps == STEPS
    ours, theirs = load_file(tmp_path / "out" / file), load_file(calm / file)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(w, theirs[name]) for name, w in ours.items())


def test_another_end_leaves_nothing_of_the_first(start: Path, tmp_path: Path) -> None:
    for merge, there, gone in ((True, "config.json", "adapter_config.json"), (False, "adapter_config.json", "config.json")):
        finetune(start, tmp_path / "out", recipe=a_recipe(merge=merge), steps=1, device="cpu", force=True)
        assert (tmp_path / "out" / there).is_file()
        assert not (tmp_path / "out" / gone).exists()


def test_an_adapter_of_a_range_brings_its_routers(start: Path, tmp_path: Path) -> None:
    settings = {"calibration.steps": 2, "calibration.images": 1}
    recipe = a_recipe(merge=False)
    finetune(start, tmp_path / "out", recipe=recipe, steps=1, device="cpu", flops_ratio=(0.4, 0.9), settings=settings)
    of_range = read(start, LoadOptions(adapter=str(tmp_path / "out")))
    config = of_range.config
    assert isinstance(config, DyDiTConfig)
    assert (config.budgets[0], config.budgets[-1], len(config.measured) > 1) == (0.4, 0.9, True)
    routers = {name: w for name, w in of_range.weights.items() if config.is_router(name)}
    adapter = read_adapter(tmp_path / "out")
    assert routers.keys() == adapter.others.keys()
    assert all(torch.equal(w, routers[name]) for name, w in adapter.others.items())
    one = read(start, LoadOptions(adapter=str(tmp_path / "out"), flops_ratio=0.6)).config
    assert isinstance(one, DyDiTConfig)
    assert not one.budgets


def as_peft(folder: Path, apart: Path, **changes: Any) -> Path:
    """A copy of an adapter with its configuration changed and without what peft has no word for."""
    folder.mkdir()
    save_file(load_file(apart / "adapter_model.safetensors"), folder / "adapter_model.safetensors")
    header = json.loads((apart / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**header, **changes}))
    return folder


def test_one_that_peft_wrote_is_read(start: Path, merged: Path, apart: Path, tmp_path: Path) -> None:
    one = read(merged)
    other = read(start, LoadOptions(adapter=str(as_peft(tmp_path / "plain", apart))))
    assert all(torch.equal(w, one.weights[name]) for name, w in other.weights.items())
    assert other.lineage[-1]["action"] == "merge an adapter"
    scaled = as_peft(tmp_path / "scaled", apart, use_rslora=True, lora_alpha=2 * 2**0.5)
    assert read_adapter(scaled).lora.scale == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only LORA is read"),
        ({"use_dora": True}, "use_dora is True; only plain LoRA is read: merge it with peft, and give the model"),
        ({"bias": "all"}, "bias is 'all'; only 'none' is read"),
        ({"r": 0}, "r is 0 and lora_alpha 2.0; they must be numbers, r of 1 or more"),
        ({"r": 3}, "attn.proj: lora_A is [2, 32] and lora_B [32, 2], which are not of rank 3"),
    ],
)
def test_another_kind_is_refused(apart: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DyditError) as error:
        read_adapter(as_peft(tmp_path / "other", apart, **changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_another_model_and_no_adapter_are_refused(apart: Path, start: Path, tmp_path: Path) -> None:
    native.write(Checkpoint.of(build_model(TINY), []), tmp_path / "tiny")
    with pytest.raises(DyditError, match=r"is for a DyDiT \(DiT-2x32/2\), and the model is a DiT \(DiT-3x24/1\)"):
        read(tmp_path / "tiny", LoadOptions(adapter=str(apart)))
    with pytest.raises(DyditError, match=r"is for a weight blocks.0.attn.proj \[32, 32\], and the model's is \[24, 24\]"):
        read(tmp_path / "tiny", LoadOptions(adapter=str(as_peft(tmp_path / "foreign", apart))))
    with pytest.raises(DyditError, match=r"no adapter, which has adapter_config.json and adapter_model.safetensors"):
        read(start, LoadOptions(adapter=str(tmp_path)))
    for path in (apart, apart / "adapter_model.safetensors"):
        with pytest.raises(DyditError, match=rf"holds an adapter without its model; give both, as {start} --adapter {apart}"):
            read(path)
    damaged = as_peft(tmp_path / "damaged", apart)
    for text in ("{", "[]", '{"model": {"kind": "dydit"}}'):
        tensors = load_file(apart / "adapter_model.safetensors")
        save_file(tensors, damaged / "adapter_model.safetensors", {"dydit": text})
        with pytest.raises(DyditError, match=r"adapter_model.safetensors: its metadata are damaged"):
            read(start, LoadOptions(adapter=str(damaged)))
    half = as_peft(tmp_path / "half", apart)
    tensors = load_file(half / "adapter_model.safetensors")
    del tensors["base_model.model.blocks.1.mlp.fc2.lora_B.weight"]
    save_file(tensors, half / "adapter_model.safetensors")
    with pytest.raises(DyditError, match=r"blocks.1.mlp.fc2 has lora_A alone"):
        read(start, LoadOptions(adapter=str(half)))


def test_mistakes_in_recipes(start: Path, tmp_path: Path) -> None:
    with pytest.raises(DyditError, match=r"\[lora\] has no rank, without which there are no adapters; give lora.rank"):
        a_recipe(rank=None, merge=False)
    with pytest.raises(
        DyditError, match=r"20 classes: their label table begins anew, and with adapters it would not be trained"
    ):
        finetune(start, tmp_path / "out", recipe=a_recipe(), num_classes=20)
    assert not (tmp_path / "out").exists()


def test_peft_reads_it_and_computes_the_same(start: Path, merged: Path, apart: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft: Any = pytest.importorskip("peft", reason="peft is not installed; pip install peft")
        theirs = peft.PeftModel.from_pretrained(read(start).build(), str(apart)).eval()
        x = inputs(read(start).config)
        with torch.no_grad():
            torch.testing.assert_close(theirs(*x), load(merged)(*x), rtol=1e-4, atol=1e-5)
        static = randomize(build_model(TINY))
        native.write(Checkpoint.of(static, []), tmp_path / "static")
        settings = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["qkv", "fc1"], init_lora_weights=False)
        wrapped = peft.get_peft_model(static, settings)
        wrapped.save_pretrained(tmp_path / "peft")
        x = inputs(TINY)
        with torch.no_grad():
            ours = load(tmp_path / "static", adapter=str(tmp_path / "peft"))(*x)
            torch.testing.assert_close(ours, wrapped.eval()(*x), rtol=1e-4, atol=1e-5)
