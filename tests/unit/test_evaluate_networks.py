"""The shipped networks of the bundled sets, Inception through torch-fidelity, and the whole of an evaluation on a stand-in."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks import feature_training
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.evaluate import evaluate
from dydit_cli.evaluate.feature_network import network_extractor, read_network, shipped
from dydit_cli.evaluate.features import ADM_FIGURES, Extractor, Features, Pixels, extract_features
from dydit_cli.evaluate.images import ArrayImages, real_images
from dydit_cli.evaluate.inception import WEIGHTS_FILE, fidelity_module, inception_extractor
from dydit_cli.evaluate.metrics import Gaussian, frechet_distance, inception_score
from tests.unit.test_evaluate_metrics import gaussian_of

CPU = torch.device("cpu")


def random_features(pixels: Pixels) -> Features:
    flat = pixels.reshape(len(pixels), -1)[:, :48] / np.float32(255)
    generator = np.random.default_rng(0)
    pool, spatial, logits = ((flat @ generator.normal(size=(48, n))).astype(np.float32) for n in (6, 5, 4))
    odds = np.exp(logits)
    return Features(pool, spatial, odds / odds.sum(axis=1, keepdims=True))


# Inception's contract with random projections: 6 pool features, 5 spatial ones, 4 classes
STAND_IN = Extractor("inception", None, None, 3, {"features": "random"}, random_features, ADM_FIGURES)


def noise(count: int, seed: int, high: int = 256) -> Pixels:
    return np.random.default_rng(seed).integers(0, high, (count, 4, 4, 3)).astype(np.uint8)


def images(count: int, seed: int, high: int = 256) -> ArrayImages:
    return ArrayImages(f"noise{seed}", noise(count, seed, high))


def test_an_evaluation_puts_the_figures_together(tmp_path: Path) -> None:
    drawn, real = images(50, 1, 200), images(70, 2)
    np.savez(tmp_path / "ref.npz", real.pixels)
    result = evaluate(drawn, tmp_path / "ref.npz", STAND_IN, batch=16, device="cpu")
    a, b = random_features(drawn.pixels), random_features(real.pixels)
    assert a.spatial is not None
    assert b.spatial is not None
    assert a.probabilities is not None
    assert result.figures["fid"] == pytest.approx(frechet_distance(gaussian_of(a.pool), gaussian_of(b.pool)), rel=1e-6)
    assert result.figures["sfid"] == pytest.approx(frechet_distance(gaussian_of(a.spatial), gaussian_of(b.spatial)), rel=1e-6)
    assert result.figures["inception_score"] == pytest.approx(inception_score(a.probabilities), rel=1e-6)
    assert result.protocol["reference_moments"] == "computed"
    assert (result.protocol["images"], result.protocol["reference_images"], result.protocol["neighbours"]) == (50, 70, 3)
    assert any("50 images: the fewer, the higher the FID" in note for note in result.notes)
    # a narrow set: precise, and poor in recall
    precision, recall = result.figures["precision"], result.figures["recall"]
    swapped = evaluate(real, tmp_path / "ref.npz", STAND_IN, device="cpu").figures
    assert precision is not None
    assert recall is not None
    assert precision > recall
    assert swapped["fid"] == pytest.approx(0, abs=1e-6)
    assert (swapped["precision"], swapped["recall"]) == (1, 1)


def test_stored_moments_stand_before_the_images_own(tmp_path: Path) -> None:
    """ADM's batches hold the moments of the whole set and only 10,000 of its images."""
    drawn, some = images(40, 1), noise(20, 2)
    pool, spatial = Gaussian(np.ones(6), np.eye(6)), Gaussian(np.ones(5), np.eye(5))
    moments = {"mu": pool.mean, "sigma": pool.covariance, "mu_s": spatial.mean, "sigma_s": spatial.covariance}
    features = random_features(drawn.pixels)
    np.savez(tmp_path / "adm.npz", arr_0=some, **moments)  # type: ignore[arg-type]
    result = evaluate(drawn, tmp_path / "adm.npz", STAND_IN, device="cpu")
    assert result.protocol["reference_moments"] == "stored"
    assert result.figures["fid"] == pytest.approx(frechet_distance(gaussian_of(features.pool), pool), rel=1e-6)
    assert result.figures["sfid"] == pytest.approx(
        frechet_distance(gaussian_of(features.spatial), spatial),  # type: ignore[arg-type]
        rel=1e-6,
    )
    assert result.figures["precision"] is not None

    np.savez(tmp_path / "pool.npz", mu=pool.mean, sigma=pool.covariance)
    bare = evaluate(drawn, tmp_path / "pool.npz", STAND_IN, device="cpu")
    assert bare.figures["fid"] == result.figures["fid"]
    assert [bare.figures[name] for name in ("sfid", "precision", "recall")] == [None, None, None]
    assert any("no mu_s and sigma_s: no sFID" in note for note in bare.notes)
    assert any("no images (arr_0): no precision and recall" in note for note in bare.notes)
    assert bare.protocol["reference_images"] is None

    np.savez(tmp_path / "other.npz", mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(DyditError, match="its moments are of 7 features and --features inception has 6"):
        evaluate(drawn, tmp_path / "other.npz", STAND_IN, device="cpu")


def test_a_reference_of_another_size_is_brought_to_the_samples(tmp_path: Path) -> None:
    big = np.random.default_rng(0).integers(0, 256, (9, 10, 10, 3)).astype(np.uint8)
    np.savez(tmp_path / "ref.npz", big)
    protocol = evaluate(images(9, 1), tmp_path / "ref.npz", STAND_IN, device="cpu").protocol
    assert (protocol["side"], protocol["resize"]) == (4, "none")
    assert "bicubic" in protocol["reference_resize"]


def test_too_few_images_are_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "ref.npz", noise(30, 2))
    few = evaluate(images(3, 1), tmp_path / "ref.npz", STAND_IN, device="cpu")
    assert few.figures["recall"] is None
    assert few.figures["precision"] is not None
    assert any("3 samples for 6 features: their covariance is singular" in note for note in few.notes)
    assert any("recall needs more than 3 samples" in note for note in few.notes)
    with pytest.raises(DyditError, match="noise1: 1 image; a covariance needs 2 and more"):
        evaluate(images(1, 1), tmp_path / "ref.npz", STAND_IN, device="cpu")
    with pytest.raises(DyditError, match="--features inception needs a --reference"):
        evaluate(images(3, 1), None, STAND_IN, device="cpu")


def test_the_shipped_network_is_as_good_as_it_says() -> None:
    network, accuracy = read_network("digits")
    assert feature_training.accuracy("digits", network) == accuracy >= 0.97
    card = (shipped("digits") / "README.md").read_text()
    stated = re.search(r"\*\*(\d+\.\d) %\*\* of the 360 held-out", card)
    assert stated
    assert float(stated.group(1)) == pytest.approx(100 * accuracy, abs=0.05)
    assert network_extractor("digits").facts["features_sha256"] in card
    assert sum(file.stat().st_size for file in shipped("digits").iterdir()) < 500_000


def test_real_digits_are_near_and_wrong_ones_far() -> None:
    """Against the training digits; the held-out ones have the classes that they are labelled with."""
    held_out = real_images("digits", held_out=True)
    good = evaluate(held_out, None, network_extractor("digits"), device="cpu")
    assert good.protocol["reference"] == "digits"
    assert good.figures["recognised"] == good.protocol["judge_accuracy"] >= 0.97
    upside_down = ArrayImages("turned", np.ascontiguousarray(held_out.pixels[:, ::-1]), held_out.labels)
    one_class = ArrayImages("fives", held_out.pixels[held_out.labels == 5])
    turned, fives = (evaluate(x, None, network_extractor("digits"), device="cpu").figures for x in (upside_down, one_class))
    for name in ("precision", "recall"):
        assert (good.figures[name] or 0) > 0.8
    for worse in (turned, fives):
        assert (worse["frechet"] or 0) > 5 * (good.figures["frechet"] or 1)
    assert (turned["recognised"] or 1) < 0.6
    assert fives["recognised"] is None
    assert (fives["precision"] or 0) > 0.6
    assert (fives["recall"] or 1) < 0.25


def test_training_learns_within_seconds_and_repeats() -> None:
    networks = [feature_training.train("digits", epochs=4) for _ in range(2)]
    assert feature_training.accuracy("digits", networks[0]) > 0.9
    for one, two in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(one, two)


def test_a_spoiled_network_is_refused(tmp_path: Path) -> None:
    for file in shipped("digits").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "features.json").write_text("{}")
    with pytest.raises(DyditError, match="not the features of digits"):
        read_network("digits", tmp_path)
    (tmp_path / "features.json").write_bytes((shipped("digits") / "features.json").read_bytes())
    with pytest.raises(DyditError, match="not the features of fashion"):
        read_network("fashion", tmp_path)


FIDELITY = """
import torch
from torch import nn

URL_INCEPTION_V3 = "https://example.org/weights.pth"

class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch1x1 = nn.Conv2d(3, 9, 1, bias=False)

class FeatureExtractorInceptionV3(nn.Module):
    def __init__(self, name, features_list, feature_extractor_weights_path=None, **more):
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        self.Mixed_6d = Branches()
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, x):
        assert x.dtype == torch.uint8
        x = self.Mixed_6d.branch1x1(x.float())
        return x.mean(dim=(2, 3)), x.amax(dim=(2, 3)) / 100
"""


@pytest.fixture
def fidelity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small torch-fidelity and its weights file."""
    package = tmp_path / "site" / "torch_fidelity"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "feature_extractor_inceptionv3.py").write_text(FIDELITY)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    generator = torch.Generator().manual_seed(0)
    weights = {"Mixed_6d.branch1x1.weight": torch.randn(9, 3, 1, 1, generator=generator)}
    torch.save(weights, tmp_path / WEIGHTS_FILE)
    return tmp_path / WEIGHTS_FILE


def test_inception_features_are_in_adms_order(fidelity: Path) -> None:
    extractor = inception_extractor(fidelity, CPU)
    x = noise(2, 3)
    features = extractor.extract(x)
    weight = torch.load(fidelity)["Mixed_6d.branch1x1.weight"][:, :, 0, 0].numpy()
    maps = x.astype(np.float32) @ weight.T  # 2 4 4 9: rows, columns, channels
    assert features.spatial is not None
    np.testing.assert_allclose(features.pool, maps.mean(axis=(1, 2)), rtol=1e-4)
    np.testing.assert_allclose(features.spatial, maps[..., :7].reshape(2, -1), rtol=1e-4, atol=1e-3)
    assert features.probabilities is not None
    np.testing.assert_allclose(features.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert len(extractor.facts["features_sha256"]) == 64
    assert extract_features(extractor, [x]).spatial is not None


def test_mistakes_with_inception(fidelity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DyditError, match=r"--inception /none.pth: no such file; give torch-fidelity's weights-inception"):
        inception_extractor("/none.pth", CPU)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(DyditError, match=r"not there; download https://example.org/weights.pth to that place, or name"):
        inception_extractor(None, CPU)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / WEIGHTS_FILE).write_bytes(fidelity.read_bytes())
    assert inception_extractor(None, CPU).extract(noise(2, 0)).pool.shape == (2, 9)
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(DyditError, match=r"other.pth: not torch-fidelity's weights-inception"):
        inception_extractor(tmp_path / "other.pth", CPU)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DyditError, match=r"list.pth: holds no weights"):
        inception_extractor(tmp_path / "list.pth", CPU)
    torch.save(ArrayImages, tmp_path / "code.pth")
    with pytest.raises(DyditError, match=r"code.pth: refused: its pickle wants dydit_cli.evaluate.images.ArrayImages"):
        inception_extractor(tmp_path / "code.pth", CPU)
    needed = r"--features inception needs torch-fidelity: pip install 'dydit\[evaluate\]' \(.*torch_fidelity.*\)"
    for name in ("torch_fidelity.feature_extractor_inceptionv3", "torch_fidelity"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(DyditError, match=needed):
            inception_extractor(fidelity, CPU)


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed")
def test_the_real_torch_fidelity_on_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = fidelity_module()
    real = module.FeatureExtractorInceptionV3
    monkeypatch.setattr(real, "load_state_dict", lambda self, weights: None)
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *args, **more: {})
    torch.manual_seed(0)
    torch.save(real("inception", ["2048"]).state_dict(), tmp_path / "random.pth")
    monkeypatch.undo()
    extractor = inception_extractor(tmp_path / "random.pth", CPU)
    features = extractor.extract(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8))
    spatial: Any = features.spatial
    probabilities: Any = features.probabilities
    assert (features.pool.shape, spatial.shape, probabilities.shape) == ((2, 2048), (2, 2023), (2, 1008))
    assert spatial.min() >= 0  # mixed_6/conv is what comes after the ReLU
    pool: NDArray[np.float32] = features.pool
    inception: Any = extractor.extract
    logits = pool @ inception.network.fc.weight.T.numpy()
    np.testing.assert_allclose(probabilities, np.asarray(torch.from_numpy(logits).softmax(1)), rtol=1e-3)


def test_the_training_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "network"
    facts = feature_training.write("digits", out, epochs=1)
    assert read_network("digits", out)[1] == facts["accuracy"]
    assert (facts["epochs"], facts["held_out"], facts["training"]) == (1, 360, 1437)
    done = subprocess.run([sys.executable, feature_training.__file__], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "usage: python benchmarks/feature_training.py NAME DIR\n")
    for name, folder, message in (
        ("cats", tmp_path / "new", "error: no data set 'cats'; choose one of digits, fashion, idx:PATH, "),
        ("digits", out, f"error: {out}: "),
    ):
        assert feature_training.main([name, str(folder)]) == 2
        assert capsys.readouterr().err.startswith(message)
