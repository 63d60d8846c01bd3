"""Models of diffusers through our readers, and ours in diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.diffusers import as_diffusers
from dydit_cli.checkpoint.export import export
from dydit_cli.checkpoint.native import write
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import load, read
from dydit_cli.diffusion.generate import generate, image_generators
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.errors import DyditError
from dydit_cli.model.families.dit import DiT, DiTConfig, DyDiT, DyDiTConfig
from tests.conftest import TINY, randomize
from tests.reference.test_models import largest_difference


def test_diffusers_pipeline_folder(golden: Path) -> None:
    io = load_file(golden / "diffusers_dit" / "io.safetensors")
    arguments = (io["hidden_states"], io["timestep"], io["class_labels"])
    checkpoint = read(golden / "diffusers_dit")
    assert checkpoint.found == "diffusers DiTPipeline folder"
    assert isinstance(checkpoint.config, DiTConfig)
    assert (checkpoint.config.timestep_variant, checkpoint.config.norm2_eps) == ("diffusers", 1e-5)
    assert checkpoint.notes[1:] == (
        "no VAE beside it",
        "scheduler DDIMScheduler with leading timesteps (dydit sample --spacing leading)",
    )
    original = read(golden / "diffusers_dit" / "transformer", LoadOptions(timestep_variant="original"))
    assert isinstance(original.config, DiTConfig)
    assert (original.config.timestep_variant, original.config.norm2_eps) == ("original", 1e-6)
    with torch.inference_mode():
        assert largest_difference(checkpoint.build()(*arguments), io["sample"]) < 1e-5
        assert largest_difference(original.build()(*arguments), io["official.mapped"]) < 1e-5


def build_diffusers(folder: Path, **more: Any) -> Any:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8}
    sizes |= {"patch_size": 2, "in_channels": 3, "out_channels": 6, "num_embeds_ada_norm": 5}
    model: Any = DiTTransformer2DModel(**{**sizes, **more})
    frame = {name: p for name, p in model.named_parameters() if "norm1.emb" in name}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 0.2)
            if name in frame:  # one embedder for all blocks
                p.copy_(frame[name.replace("transformer_blocks.1", "transformer_blocks.0")])
    model.eval().save_pretrained(folder)
    return model


def run_diffusers(model: Any) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4, 3, 8, 8, generator=generator)
    t, y = torch.tensor([0, 999, 437, 12]), torch.tensor([0, 5, 2, 4])
    with torch.inference_mode():
        return (x, t, y), model(x, timestep=t, class_labels=y).sample


@pytest.mark.parametrize("shard", ["10GB", "10KB"])
def test_diffusers_own_model_in_and_back(tmp_path: Path, shard: str) -> None:
    """Built and saved by diffusers, whole or in shards, read by us; written by us, read by diffusers, the same bits."""
    from diffusers import DiTTransformer2DModel

    theirs = build_diffusers(tmp_path / "theirs")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size=shard)
    arguments, expected = run_diffusers(theirs)
    ours = read(tmp_path / "shards")
    with torch.inference_mode():
        assert largest_difference(ours.build()(*arguments), expected) < 1e-5
    export(tmp_path / "theirs", tmp_path / "back", format="diffusers")
    back: Any = DiTTransformer2DModel.from_pretrained(tmp_path / "back")
    for name, w in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], w), name
    assert torch.equal(run_diffusers(back)[1], expected)


def test_pipeline_keeps_class_names_and_finds_its_vae(tmp_path: Path) -> None:
    build_diffusers(tmp_path / "pipe" / "transformer")
    index = {"_class_name": "DiTPipeline", "id2label": {"0": "tench", "1": "goldfish, Carassius"}}
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "pipe" / "vae").mkdir()
    (tmp_path / "pipe" / "vae" / "config.json").write_text("{}")
    checkpoint = read(tmp_path / "pipe")
    assert checkpoint.labels == {0: "tench", 1: "goldfish, Carassius"}
    assert checkpoint.vae == tmp_path / "pipe" / "vae"
    write(checkpoint, tmp_path / "ours")
    ours = read(tmp_path / "ours")
    assert (ours.labels, ours.vae) == (checkpoint.labels, checkpoint.vae)


def test_damaged_pipelines_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    index, config = tmp_path / "model_index.json", tmp_path / "transformer" / "config.json"
    index.write_text('{"_class_name": "DiTPipeline"}')
    for text in ("[]", "null", '"DiTTransformer2DModel"'):
        config.write_text(text)
        with pytest.raises(DyditError, match=r"transformer/config\.json: not a configuration of a DiTTransformer2DModel"):
            read(tmp_path)
    build_diffusers(tmp_path / "transformer")
    for labels in ("[1]", '{"one": "tench"}', '{"' + 5000 * "1" + '": "tench"}', '{"1": 5}'):
        index.write_text('{"_class_name": "DiTPipeline", "id2label": ' + labels + "}")
        with pytest.raises(DyditError, match=r"model_index\.json: labels must map class numbers to names$"):
            read(tmp_path)


def test_what_diffusers_would_compute_otherwise_is_refused(tmp_path: Path, tiny_static: DiT) -> None:
    write(Checkpoint.of(tiny_static, []), tmp_path / "static")
    with pytest.raises(DyditError, match=r"sinusoid \(over 128\), and diffusers computes another .* --any-variant"):
        export(tmp_path / "static", tmp_path / "out", format="diffusers")
    export(tmp_path / "static", tmp_path / "out", format="diffusers", any_variant=True)
    assert read(tmp_path / "out", LoadOptions(timestep_variant="original")).config == TINY
    with pytest.raises(DyditError, match="runs with diffusers' timestep sinusoid or norm epsilon"):
        export(tmp_path / "out", tmp_path / "out.pt", format="dit")
    with pytest.raises(DyditError, match="is a static model; use --format dit"):
        export(tmp_path / "static", tmp_path / "out.pt", format="dydit")
    with pytest.raises(DyditError, match=r"no format 'onnx'; choose one of dit, .*sit, .*dydit, diffusers, native"):
        export(tmp_path / "static", tmp_path / "out.pt", format="onnx")


def test_diffusers_embedders_must_be_one(tmp_path: Path) -> None:
    build_diffusers(tmp_path / "theirs")
    file = tmp_path / "theirs" / "diffusion_pytorch_model.safetensors"
    weights = {name: w.clone() for name, w in load_file(file).items()}
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    weights[name] += 1
    save_file(weights, file)
    with pytest.raises(DyditError, match=f"{name} differs from block 0's; a DiT has one embedder for all blocks"):
        read(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("activation_fn", "geglu", "activation_fn is 'geglu'; a DiT has 'gelu-approximate'"),
        ("norm_type", "layer_norm", "norm_type is 'layer_norm'"),
        ("num_layers", "two", "num_layers is 'two'; it must be a whole number"),
        ("num_layers", 3, "the weights have 2 blocks where the configuration says 3"),
        ("out_channels", 5, "out_channels 5 is neither in_channels 3 nor twice that"),
        ("sample_size", 7, "input_size 7 is no multiple of patch_size 2"),
    ],
)
def test_diffusers_configurations_that_are_no_dit(tmp_path: Path, key: str, value: Any, message: str) -> None:
    build_diffusers(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(DyditError) as error:
        read(tmp_path / "theirs")
    assert message in str(error.value)


def test_a_hub_id_says_that_the_hub_is_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(DyditError, match=r"org/name: no such path here, and the Hugging Face hub does not give it"):
        read("org/name")
    (tmp_path / "org").mkdir()
    with pytest.raises(DyditError, match=r"org/name: no such checkpoint"):
        read("org/name")


def test_a_hub_id_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_diffusers(tmp_path / "snapshot")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(tmp_path / "snapshot"))
    assert read("facebook/DiT-tiny").found == "diffusers DiTTransformer2DModel folder"


@pytest.mark.parametrize("execution", ["sparse", "masked"])
def test_inside_diffusers_own_pipeline(tmp_path: Path, execution: Any) -> None:
    """A DyDiT in DiTPipeline makes the latents that `dydit sample` makes, at equal seeds, spacing and guidance."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

    config = DyDiTConfig(
        input_size=4, patch_size=1, in_channels=4, hidden_size=24, depth=2, num_heads=3, num_classes=7, token_router_reduction=4
    )
    write(Checkpoint.of(randomize(DyDiT(config)), []), tmp_path / "ours")
    latents: list[Tensor] = []

    vae: Any = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    decode = vae.decode

    def spy(z: Tensor) -> Any:
        latents.append(z * vae.config.scaling_factor)
        return decode(z)

    vae.decode = spy
    scheduler: Any = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    transformer: Any = as_diffusers(load(tmp_path / "ours"), execution)
    pipeline: Any = DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    labels = [0, 3, 6]
    images = pipeline(
        labels, guidance_scale=1.5, generator=image_generators(5, 0, 3), num_inference_steps=10, output_type="np"
    ).images
    assert images.shape == (3, 4, 4, 3)

    settings = SamplerSettings(steps=10, cfg=1.5, cfg_channels="all", spacing="leading")
    ours = generate(load(tmp_path / "ours"), torch.tensor(labels), (4, 4, 4), settings, null_class=7, seed=5)
    scale = ours.abs().max().item()
    assert largest_difference(ours, latents[0]) < 1e-4 * max(1.0, scale)


def test_a_pipeline_cannot_hold_more_than_a_thousand_classes() -> None:
    config = DiTConfig(input_size=2, patch_size=1, in_channels=1, hidden_size=8, depth=1, num_heads=2, num_classes=1001)
    with pytest.raises(DyditError, match="has 1001 classes, and DiTPipeline takes class 1000 for none"):
        as_diffusers(DiT(config))
