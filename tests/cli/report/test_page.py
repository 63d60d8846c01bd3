"""One page of every kind of run: whole, self-contained, and the same each time."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import dydit_cli
from dydit_cli.figures.base import all_figures
from dydit_cli.reports.page import PARTS
from tests.cli.report.conftest import HOSTILE
from tests.cli.report.outline import Outline


@pytest.fixture(scope="module")
def outline(path: Path) -> Outline:
    return Outline.of(path.read_text())


def test_nothing_comes_from_outside(path: Path, outline: Outline) -> None:
    assert {kind for kind, _ in outline.links} == {"href", "xlink:href", "src"}
    for kind, link in outline.links:
        assert link.startswith(("#", "data:")), f"{kind}={link[:80]}"
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", path.read_text())
    assert path.stat().st_size < 5_000_000


def test_identifiers_are_unique_and_every_use_has_one(outline: Outline) -> None:
    assert [name for name, count in Counter(outline.ids).items() if count > 1] == []
    used = {link[1:] for _, link in outline.links if link.startswith("#")}
    used |= {name for _, value in outline.attributes for name in re.findall(r"url\(#([^)]+)\)", value)}
    assert used <= set(outline.ids)
    assert set(PARTS) - {"budgets"} <= used  # none of them is of a model of a range: tests/cli/test_budgets.py


def test_every_figure_and_table_is_labelled(outline: Outline) -> None:
    """Every figure of the catalogue is there, with a caption; every table has a heading, every number in it a unit."""
    captions = " ".join(outline.figures)
    for kind in all_figures().values():
        assert kind.title in captions
    assert all(re.match(r"(Figure|Table|Samples) \d+\. \S", caption) for caption in outline.figures)
    assert outline.tables
    assert all(outline.tables)
    numbers = [heading for heading in outline.headings if heading["class"] == "number"]
    assert len(numbers) > 50
    ordinals = {heading["name"] for heading in numbers if not heading["unit"]}
    assert ordinals <= {"step", "timestep", "block", "image", "class", "seed"}


def test_names_cannot_inject(outline: Outline, path: Path) -> None:
    assert HOSTILE in outline.text
    assert outline.tags["script"] == 1
    assert "onerror" not in dict(outline.attributes)
    assert "<img src=x" not in path.read_text()


def test_no_path_of_this_machine(path: Path, room: Path) -> None:
    assert str(room.parent) not in path.read_text()
    assert "samples-tuned" in path.read_text()


def test_the_same_inputs_give_the_same_page(room: Path, tmp_path: Path) -> None:
    inputs = [room / name for name in ("losses", "evaluation.json", "bench.json", "samples-static", "tuned")]
    pages = [dydit_cli.report(inputs, tmp_path / name) for name in ("one.html", "two.html")]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_figures_are_said_in_words_with_units(outline: Outline) -> None:
    text = outline.text.replace("\N{NO-BREAK SPACE}", " ")
    for said in (
        r"takes \d+\.\d\d kMACs per forward and image where the static model takes \d+\.\d\d kMACs: a ratio of 0\.\d{3}",
        r"3 images of samples-tuned against digits: Fréchet distance 4\.25, recognised 98\.5 %, precision 0\.900",
        r"This run took 20 steps in 2\.0 s",
        r"DyDiT with 0\.310 of its MACs has 32\.8",
        r"the best pruning there \(magnitude pruning, 0\.530\) 19\.4",
    ):
        assert re.search(said, text), said


def test_values_are_under_the_pointer(path: Path) -> None:
    titles = re.findall(r"<title>([^<]+)</title>", path.read_text())
    assert any("Fréchet distance" in title and "DyDiT" in title for title in titles)


def test_how_to_come_by_it_again(outline: Outline) -> None:
    """The commands as they were given, each once, the model's first; paths are cut, and what has none is named."""
    wanted = [
        "dydit convert digits-dit converted --router-bias 3",
        "dydit finetune converted --recipe digits/finetune --calibrate --set train.lr=0.001 --out tuned",
        "dydit frontier a b --out front",
        "dydit profile static tuned --keep-masks 2 --out compared",
        "dydit profile tuned --width-only --out width",
        "dydit losses static tuned --maps-at 100 --out losses",
        "dydit sample static --classes 0-9 --vae 'a vae' --out samples-static",
        "dydit evaluate samples-tuned --features digits --tome 0.25 --out evaluation.json",
        "dydit bench tuned --measure 1 --access copies --json > bench.json",
    ]
    assert re.findall(r"^dydit [a-z]+ .*", outline.text, flags=re.MULTILINE) == wanted
    without = re.search(r"No command is stored of ([^:]*): made from Python, or by an earlier dydit", outline.text)
    assert without
    assert without.group(1) == "study, static (pretrain), samples-tuned"
