"""Samples as small pictures that a page carries with it, and figures as SVG."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from dydit_cli.artifacts.base import Artifact
from dydit_cli.artifacts.samples import Pixels, SampleFolder
from dydit_cli.figures.base import Figure, TooLittleError, figures_of
from dydit_cli.figures.inline import inline_svg
from dydit_cli.reports.section import Picture, SvgFigure

MOST = 40

LARGEST = 160  # pixels a side; what is larger is scaled down

WIDEST = 1600  # of a picture that is shown alone


def pictures_of(samples: SampleFolder) -> list[Picture]:
    """The first images of a folder of samples, each with its number and its class."""
    labels = ((i, samples.label(i)) for i in range(MOST))
    texts = (f"image {i}" if label is None else f"image {i}, class {label}" for i, label in labels)
    return [encoded(as_image(pixels), text) for pixels, text in zip(samples.first(MOST), texts, strict=False)]


def as_image(pixels: Pixels) -> Image.Image:
    """S S C, C of 1 or 3."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def encoded(image: Image.Image, text: str, largest: int = LARGEST) -> Picture:
    """A PNG of at most `largest` pixels a side, without anything but the pixels."""
    if max(image.size) > largest:
        image = image.copy()
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    pixels = image.convert("L" if image.mode == "L" else "RGB")
    pixels.info.clear()
    target = io.BytesIO()
    pixels.save(target, format="PNG", optimize=True)
    return Picture(target.getvalue(), pixels.width, pixels.height, text)


def svg_figures(artifact: Artifact, id_prefix: str) -> list[SvgFigure]:
    """Every figure of `artifact`; one that it holds too little for is left out. `id_prefix` keeps the identifiers of several
    inputs apart."""
    drawn = (svg_figure(figure, [artifact] if figure.several else artifact, id_prefix) for figure in figures_of(artifact))
    return [figure for figure in drawn if figure is not None]


def svg_figure(figure: Figure, source: Any, id_prefix: str) -> SvgFigure | None:
    """The figure of what it takes; None where that holds too little for it."""
    try:
        return SvgFigure(
            inline_svg(lambda: figure.draw(source), f"{id_prefix}-{figure.name}"), figure.title, figure.caption.format(source)
        )
    except TooLittleError:
        return None
