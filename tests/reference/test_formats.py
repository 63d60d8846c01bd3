"""Other people's files through our readers, and ours back through theirs."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.export import export
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import load, read
from dydit_cli.errors import DyditError
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT, DyDiTConfig
from tests.conftest import TINY, inputs, randomize
from tests.reference.test_models import largest_difference

DIT = LoadOptions(family="dit")
HEADS_A, HEADS_B = replace(DIT, num_heads=4), replace(DIT, num_heads=3)


def same_weights(a: Checkpoint, b: Checkpoint) -> bool:
    same = all(torch.equal(w, b.weights[name]) and w.dtype == b.weights[name].dtype for name, w in a.weights.items())
    return same and a.weights.keys() == b.weights.keys() and a.config == b.config


@pytest.mark.parametrize(("case", "reading"), [("a", HEADS_A), ("b", HEADS_B)])
def test_plain_dit_file(golden: Path, case: str, reading: LoadOptions) -> None:
    checkpoint = read(golden / f"dit_static_{case}.pt", reading)
    facts = json.loads((golden / "dit_static.json").read_text())["cases"][case]
    assert checkpoint.config == DiTConfig(**facts["config"])
    assert checkpoint.found == "DiT weights (.pt)"
    io = load_file(golden / f"dit_static_{case}.safetensors")
    with torch.inference_mode():
        assert largest_difference(checkpoint.build()(io["x"], io["t"], io["y"]), io["out"]) < 1e-5


@pytest.mark.parametrize("which", ["ema", "model"])
def test_training_checkpoint(golden: Path, which: Any) -> None:
    checkpoint = read(golden / "dit_static_b_train.pt", LoadOptions(weights=which, num_heads=3))
    assert checkpoint.found == "DiT weights (.pt, training checkpoint)"
    assert f"the {which} weights of a training checkpoint" in checkpoint.notes[0]
    io = load_file(golden / "dit_static_b.safetensors")
    with torch.inference_mode():
        assert largest_difference(checkpoint.build()(io["x"], io["t"], io["y"]), io[f"train.{which}.out"]) < 1e-5


def test_a_training_scripts_args_do_not_tell_the_heads(golden: Path) -> None:
    """They name the script's model, which these weights need not be."""
    with pytest.raises(DyditError, match=r"depth 2 and width 48 are no published size.* --num-heads N, one of 1, 2, 3,"):
        read(golden / "dit_static_b_train.pt")


@pytest.mark.parametrize("execution", ["masked", "sparse", "complete"])
def test_dydit_file(golden: Path, execution: Any) -> None:
    """Heads come from the routers' rows; nothing else needs saying."""
    checkpoint = read(golden / "dydit_masked_a.pt", DIT)
    facts = json.loads((golden / "dydit_masked.json").read_text())["cases"]["a"]
    assert checkpoint.config == DyDiTConfig(**facts["config"])
    assert "4 heads from 3 router rows" in checkpoint.notes
    io = load_file(golden / "dydit_masked_a.safetensors")
    model = load(golden / "dydit_masked_a.pt", family="dit", execution=execution)
    with torch.inference_mode():
        out = model(io["mixed.x"], io["mixed.t"], io["mixed.y"])
    assert largest_difference(out, io["mixed.out_complete" if execution == "complete" else "mixed.out"]) < 1e-5


def test_older_dydit_release_routes_every_head(tmp_path: Path) -> None:
    config = DyDiTConfig.from_static(TINY, always_on=False, token_router_reduction=4)
    model = randomize(DyDiT(config))
    path = tmp_path / "old.pt"
    torch.save(model.state_dict(), path)
    for reading in (HEADS_B,):
        checkpoint = read(path, reading)
        assert checkpoint.config == config
        assert "3 heads from 3 router rows (the older release: no head is always on)" in checkpoint.notes
    x, t, y = inputs(TINY, 8)
    with torch.no_grad():
        masked, routing = load(path, family="dit", num_heads=3)(x, t, y, return_routing=True)
        sparse = load(path, family="dit", num_heads=3, execution="sparse")(x, t, y)
    assert routing.heads[..., 0].mean() < 1
    assert (masked - sparse).abs().max() < 1e-5
    with pytest.raises(DyditError, match="has 3 rows: 4 heads, or 3 in the older release; say which with --num-heads N"):
        read(path, DIT)


STATIC_PATHS = [["dit"], ["native"], ["dit", "native", "dit"]]
DIFFUSERS = DiTConfig(**{**TINY.static().__dict__, "timestep_variant": "diffusers", "norm2_eps": 1e-5})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("kind", "formats"),
    [("dit", path) for path in STATIC_PATHS]
    + [("dydit", path) for path in (["dydit"], ["native"], ["native", "dydit", "native"])]
    + [("diffusers", path) for path in (["diffusers"], ["native", "diffusers"], ["diffusers", "native", "diffusers"])],
)
def test_round_trips_are_bit_exact(tmp_path: Path, kind: str, formats: list[Any], dtype: torch.dtype) -> None:
    config = {"dit": TINY, "dydit": DyDiTConfig.from_static(TINY, token_router_reduction=4), "diffusers": DIFFUSERS}[kind]
    model = randomize(DyDiT(config) if isinstance(config, DyDiTConfig) else DiT(config)).to(dtype)
    if kind == "diffusers":
        # positions are not stored over there, so they come back in float32
        model.pos_embed.data = DiT(config).pos_embed.data
    start = Checkpoint.of(model, [])
    write(start, tmp_path / "start")
    here = tmp_path / "start"
    for i, format in enumerate(formats):
        there = tmp_path / (f"{i}.pt" if format in ("dit", "dydit") else f"{i}")
        export(here, there, format=format, reading=HEADS_B)
        here = there
    assert same_weights(start, read(here, HEADS_B))


def test_dtype_of_an_export(tmp_path: Path, tiny_static: DiT) -> None:
    write(Checkpoint.of(tiny_static, []), tmp_path / "start")
    for dtype, expected in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        export(tmp_path / "start", tmp_path / dtype, format="native", dtype=dtype)  # type: ignore[arg-type]
        assert {w.dtype for w in read(tmp_path / dtype).weights.values()} == {expected}
    with torch.no_grad():
        tiny_static.final_layer.linear.bias.fill_(1e6)
    write(Checkpoint.of(tiny_static, []), tmp_path / "large")
    with pytest.raises(DyditError, match=r"final_layer.linear.bias has values that float16 cannot hold; use bf16 or fp32"):
        export(tmp_path / "large", tmp_path / "out", format="native", dtype="fp16")
    assert not (tmp_path / "out").exists()


def test_a_dydit_has_no_place_in_a_static_format(tmp_path: Path, tiny_dynamic: DyDiT) -> None:
    write(Checkpoint.of(tiny_dynamic, []), tmp_path / "dynamic")
    formats: tuple[Any, ...] = ("dit", "diffusers")
    for format in formats:
        with pytest.raises(DyditError, match=f"routers the static format '{format}' has no place for; .* --complete"):
            export(tmp_path / "dynamic", tmp_path / "out", format=format)
    export(tmp_path / "dynamic", tmp_path / "all-on.pt", format="dit", complete=True)
    x, t, y = inputs(TINY)
    with torch.no_grad():
        static = load(tmp_path / "all-on.pt", family="dit", num_heads=3)(x, t, y)
        assert torch.equal(static, tiny_dynamic(x, t, y, complete=True))


def test_bare_safetensors_and_shards(tmp_path: Path, tiny_static: DiT) -> None:
    weights = tiny_static.state_dict()
    save_file(weights, tmp_path / "one.safetensors")
    assert read(tmp_path / "one.safetensors", HEADS_B).config == TINY
    names = sorted(weights)
    files = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(names)}
    (tmp_path / "shards").mkdir()
    for file in set(files.values()):
        save_file({name: weights[name] for name in names if files[name] == file}, tmp_path / "shards" / file)
    (tmp_path / "shards" / "dit.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    for path in (tmp_path / "shards", tmp_path / "shards" / "dit.safetensors.index.json"):
        checkpoint = read(path, HEADS_B)
        assert checkpoint.found == "DiT weights (sharded .safetensors)"
        assert all(torch.equal(checkpoint.weights[name], w) for name, w in weights.items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_prefixes_are_taken_off(tmp_path: Path, tiny_static: DiT, prefix: str) -> None:
    torch.save({prefix + name: w for name, w in tiny_static.state_dict().items()}, tmp_path / "wrapped.pt")
    assert read(tmp_path / "wrapped.pt", HEADS_B).config == TINY


class Evil:
    """A pickle that would write a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.target, "run"))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_wants_to_run_code_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "written"
    for name, save in (
        ("zip.pt", lambda value, path: torch.save(value, path)),
        ("plain.pt", lambda value, path: path.write_bytes(pickle.dumps(value, protocol=protocol))),
    ):
        save({"x_embedder.proj.weight": torch.ones(1), "evil": Evil(target)}, tmp_path / name)
        with pytest.raises(DyditError) as error:
            read(tmp_path / name)
        assert "refused: its pickle wants" in str(error.value), str(error.value)
        assert "which is code and not data" in str(error.value)
        assert not target.exists()


def test_only_an_allowed_namespace_is_read(golden: Path) -> None:
    """The training script's args: read as data, and the loader's allow-list does not leak out."""
    read(golden / "dit_static_b_train.pt", HEADS_B)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(golden / "dit_static_b_train.pt", weights_only=True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "holds no weights"),
        ([1, 2], "holds no weights"),
        (torch.ones(3), "holds no weights"),
        ({"a": 1}, "'a' is no tensor; the file holds something else than weights"),
        ({1: torch.ones(1)}, "'1' is no tensor"),
        ({"a": torch.ones(2)}, "missing x_embedder.proj.weight"),
        ({"a": torch.ones(2, dtype=torch.int32)}, "a is int32; weights are floating point"),
        ({"a": torch.tensor([1.0, float("inf")])}, "a holds NaN or Inf; the checkpoint is damaged"),
        ({"a": torch.ones(1).expand(10**9)}, "a says shape [1000000000], which its data do not fill"),
        ({"a": torch.ones(2).to_sparse()}, "a is no dense tensor"),
        ({"model": {"a": torch.ones(2)}, "opt": {}}, "a training checkpoint without 'ema' weights; it has model, opt"),
    ],
)
def test_pickles_that_are_no_checkpoint(tmp_path: Path, value: Any, message: str) -> None:
    torch.save(value, tmp_path / "thing.pt")
    with pytest.raises(DyditError) as error:
        read(tmp_path / "thing.pt", DIT)
    assert message in str(error.value)
    assert str(tmp_path / "thing.pt") in str(error.value)


def damaged(weights: dict[str, Tensor], name: str, change: Any) -> dict[str, Tensor]:
    rest = dict(weights)
    value = change(rest.pop(name))
    return rest if value is None else {**rest, name: value}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("pos_embed", lambda w: w[:, :15], "pos_embed has 15 tokens, which are no square"),
        ("pos_embed", lambda w: None, "say the input size with --input-size N"),
        ("blocks.1.attn.qkv.weight", lambda w: None, "missing blocks.1.attn.qkv.weight"),
        ("blocks.1.attn.qkv.weight", lambda w: w[:9], "blocks.1.attn.qkv.weight is [9, 24] where [72, 24] is wanted"),
        (
            "final_layer.linear.weight",
            lambda w: w[:1].repeat(5, 1),
            "has 5 rows; 1 or twice that fit the patches",
        ),
        ("x_embedder.proj.weight", lambda w: w.flatten(), "x_embedder.proj.weight has shape [24]; it needs 4 dimensions"),
        ("x_embedder.proj.weight", lambda w: w[:0], "x_embedder.proj.weight has shape [0, 1, 1, 1]"),
    ],
)
def test_shapes_that_are_no_dit(tmp_path: Path, tiny_static: DiT, name: str, change: Any, message: str) -> None:
    torch.save(damaged(tiny_static.state_dict(), name, change), tmp_path / "thing.pt")
    with pytest.raises(DyditError) as error:
        read(tmp_path / "thing.pt", HEADS_B)
    assert message in str(error.value)


def test_heads_are_asked_for_with_the_divisors(tmp_path: Path, tiny_static: DiT) -> None:
    torch.save(tiny_static.state_dict(), tmp_path / "thing.pt")
    with pytest.raises(DyditError, match="say them with --num-heads N, one of 1, 2, 3, 4, 6, 8, 12, 24"):
        read(tmp_path / "thing.pt", DIT)
    with pytest.raises(DyditError, match="hidden_size 24 must be a multiple of num_heads 5"):
        read(tmp_path / "thing.pt", replace(DIT, num_heads=5))


def test_published_sizes_tell_their_heads(tmp_path: Path) -> None:
    config = DiTConfig(input_size=4, patch_size=2, hidden_size=384, depth=12, num_heads=6, num_classes=3)
    with torch.device("meta"):
        shapes = DiT(config).state_dict()
    torch.save({name: torch.zeros(w.shape, dtype=torch.bfloat16) for name, w in shapes.items()}, tmp_path / "s.pt")
    checkpoint = read(tmp_path / "s.pt", DIT)
    assert checkpoint.config == config
    assert "6 heads as DiT-S has" in checkpoint.notes
    assert "input size 4 from 4 positions" in checkpoint.notes


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../part-0.safetensors"}}, "is not a plain file name beside the index"),
        ({"weight_map": {"a": "part-9.safetensors"}}, "shard part-9.safetensors is missing beside it"),
        ({"weight_map": {"a": "part-0.safetensors", "b": "part-0.safetensors"}}, "b is in none of the shards"),
        ({"weight_map": {"c": "part-0.safetensors"}}, "a is not where the index says"),
        ({"weight_map": {"a": "part-0.safetensors", "d": "part-1.safetensors"}}, "a stands in another shard too"),
        ({"weight_map": []}, 'it needs a "weight_map" of names to files'),
        ([], 'it needs a "weight_map" of names to files'),
    ],
)
def test_damaged_shards(tmp_path: Path, index: Any, message: str) -> None:
    for i in range(2):
        save_file({"a": torch.ones(2)}, tmp_path / f"part-{i}.safetensors")
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DyditError) as error:
        read(tmp_path / "x.safetensors.index.json")
    assert message in str(error.value)


def test_duplicate_keys_in_a_header_are_refused(tmp_path: Path) -> None:
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f'{{"a":{entry},"a":{entry}}}'.encode()
    (tmp_path / "twice.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(DyditError, match="'a' stands twice"):
        read(tmp_path / "twice.safetensors")
