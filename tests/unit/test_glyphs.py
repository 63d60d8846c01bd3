"""The letters and digits drawn from matplotlib's fonts: what they look like, and that they can be told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dydit_cli.data import glyphs
from dydit_cli.data.glyphs import CHARACTERS, FONTS, SIDE, load_glyphs_split
from dydit_cli.data.load import load_data
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.classifier import classifier
from tests.conftest import TINY


def of(character: str) -> Tensor:
    """The training images of one class, as ink from 0 to 1: M 16 16."""
    data = load_glyphs_split()
    return (data.images[data.labels == CHARACTERS.index(character), 0] + 1) / 2


def rows(character: str) -> tuple[float, float]:
    """Where its ink begins and ends, counted from above, averaged over its images."""
    inked = of(character).amax(dim=2) > 0.3  # M 16
    down = torch.arange(SIDE)
    return (
        torch.where(inked, down, SIDE).amin(dim=1).double().mean().item(),
        torch.where(inked, down, -1).amax(dim=1).double().mean().item(),
    )


def test_the_two_parts() -> None:
    training, held_out = load_data("glyphs"), load_glyphs_split(held_out=True)
    for data, each in ((training, 6), (held_out, 2)):
        images, labels = data.take(torch.arange(len(data)))
        assert images.shape == (each * len(FONTS) * 62, 1, 16, 16)
        assert (images.dtype, images.min().item(), images.max().item()) == (torch.float32, -1.0, 1.0)
        assert labels.bincount().tolist() == [each * len(FONTS)] * 62 == [each * len(FONTS)] * data.num_classes
        # 256 levels, as pixels that are looked at have
        assert torch.equal(((images + 1) * 127.5).round() / 127.5 - 1, images)
    ours, others = ({image.numpy().tobytes() for image in data.images} for data in (load_glyphs_split(), held_out))
    assert (len(ours), len(others), len(ours & others)) == (7812, 2604, 0)


def test_they_are_drawn_again_to_the_bit() -> None:
    again = load_glyphs_split.__wrapped__(True)
    assert torch.equal(again.images, load_glyphs_split(True).images)
    assert torch.equal(again.labels, load_glyphs_split(True).labels)


def test_nothing_is_cut_off() -> None:
    """Half a pixel at the edge stays free: ink that went on beyond it would fill the edge's pixels."""
    for held_out in (False, True):
        images = load_glyphs_split(held_out).images
        edge = torch.cat([images[..., 0], images[..., -1], images[..., 0, :], images[..., -1, :]])
        assert edge.max() <= 0.1
        inside = images[..., 4:-4, 4:-4].amax(dim=(1, 2, 3))
        assert inside.min() > 0  # and something is there


def test_a_class_shows_its_character() -> None:
    """As print has it: one baseline, descenders below it, capitals and ascenders above the small letters."""
    _, baseline = rows("H")
    for character in "AEx1d":
        assert rows(character)[1] == pytest.approx(baseline, abs=0.4), character
    for character in "gpqy":
        assert rows(character)[1] > baseline + 2, character
    for small in "cosvwxz":
        assert rows(small)[0] > rows(small.upper())[0] + 1.5, small
    width = {character: of(character).amax(dim=1).gt(0.3).double().sum(dim=1).mean().item() for character in "iMm1W"}
    assert width["i"] < width["1"] < width["m"] < width["W"]
    mean = of("L").mean(dim=0)
    assert mean[:8, :8].sum() > 2 * mean[:8, 8:].sum()  # its stem is at the left, and it stands upright
    assert mean[8:].sum() > mean[:8].sum()


def test_the_classifier_tells_them_apart() -> None:
    known, held_out = classifier("glyphs"), load_glyphs_split(held_out=True)
    assert 0.98 <= known.accuracy < 1
    few = torch.arange(0, len(held_out), 20)
    assert known.class_accuracy(held_out.images[few], held_out.labels[few]) > 0.95
    assert known.class_accuracy(held_out.images[few], (held_out.labels[few] + 1) % 62) < 0.05


def test_mistakes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DyditError, match="data set glyphs has 16 pixels a side and the model 4; choose data that fit"):
        load_data("glyphs").check(TINY)
    font = glyphs._open("cmr10", 40)
    with pytest.raises(DyditError, match=r"font cmr10 .*has no glyph for ' '; install matplotlib anew"):
        glyphs.Glyph(font, " ", 30)
    with monkeypatch.context() as patched:
        patched.setattr(glyphs, "font_folder", lambda: tmp_path)
        with pytest.raises(DyditError, match=r"DejaVuSans\.ttf: not readable as a font \(No such file or directory\)"):
            load_glyphs_split.__wrapped__()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DyditError, match="drawn from matplotlib's fonts, and it is not there; pip install matplotlib"):
        glyphs.font_folder()


def test_chance_moves_turns_and_resizes() -> None:
    """Each of the five numbers changes the picture, and a larger glyph has more ink."""
    glyph = glyphs._glyphs("DejaVuSans")[CHARACTERS.index("R")]
    plain = glyphs.draw(glyph, np.zeros(5))
    for i in range(5):
        assert not np.array_equal(glyphs.draw(glyph, np.eye(5)[i]), plain)
    ink = [glyphs.draw(glyph, size * np.eye(5)[0]).sum(dtype=int) for size in (-1, 0, 1)]
    # ink grows with the square of the height, from 9.0 over 9.6 to 10.2 pixels
    assert ink[0] / ink[1] == pytest.approx((9.0 / 9.6) ** 2, rel=0.01)
    assert ink[2] / ink[1] == pytest.approx((10.2 / 9.6) ** 2, rel=0.01)
