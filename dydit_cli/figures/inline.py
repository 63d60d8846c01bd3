"""A figure inside an HTML page: identifiers of its own, the page's fonts, and values under the pointer."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from dydit_cli.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

POINTS = "dydit-points-"  # names what gets values under the pointer, until it has them

MOST_POINTS = 2000


def inline_svg(draw: Callable[[], Figure], prefix: str) -> str:
    """What `draw` makes as an `<svg>` element without a background, the same text each time.

    Every identifier begins with `prefix`, so that a page can hold many. Markers, scattered points and bars have a
    `<title>` with their values, which a browser shows under the pointer.
    """
    import matplotlib

    with style.styled(), matplotlib.rc_context({"svg.hashsalt": f"dydit {prefix}"}):
        figure = draw()
        titles = dict(_with_values(figure))
        text = io.BytesIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(text.getvalue())
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    _add_titles(root, titles)
    _rename(root, prefix)
    return ElementTree.tostring(root, encoding="unicode").replace("\r", "")


def _with_values(figure: Figure) -> Iterator[tuple[str, list[str]]]:
    """Marks what has single points or bars in the figure with an identifier, and yields it with a text for each."""
    for i, ax in enumerate(figure.axes):
        # a line with error bars has its name on the whole of them
        names = {id(whole[0]): str(whole.get_label()) for whole in ax.containers if type(whole).__name__ == "ErrorbarContainer"}
        for j, line in enumerate(ax.lines):
            points = np.column_stack([np.asarray(part, dtype=float) for part in (line.get_xdata(), line.get_ydata())])
            drawn = np.isfinite(points).all(axis=1)
            plain = line.get_marker() not in ("None", None, "", " ") and line.get_transform() == ax.transData
            if plain and line.get_markevery() is None and 0 < drawn.sum() <= MOST_POINTS and _inside(ax, points[drawn]):
                line.set_gid(f"{POINTS}{i}-line-{j}")
                yield (
                    f"{POINTS}{i}-line-{j}",
                    [_point_text(ax, names.get(id(line), str(line.get_label())), *point) for point in points[drawn]],
                )
        for j, dots in enumerate(ax.collections):
            offsets: Any = np.ma.filled(np.ma.asarray(dots.get_offsets(), dtype=float), np.nan)
            scattered = type(dots).__name__ == "PathCollection"
            if scattered and 0 < len(offsets) <= MOST_POINTS and np.isfinite(offsets).all():
                dots.set_gid(f"{POINTS}{i}-dots-{j}")
                yield f"{POINTS}{i}-dots-{j}", [_point_text(ax, str(dots.get_label()), *point) for point in offsets]
        containers: list[Any] = ax.containers
        for j, bars in enumerate(containers):
            for k, bar in enumerate(bars if type(bars).__name__ == "BarContainer" else ()):
                name = f"{POINTS}{i}-bars-{j}-{k}"
                bar.set_gid(name)
                lying = bars.orientation == "horizontal"
                value, axis = (bar.get_width(), ax.get_xlabel()) if lying else (bar.get_height(), ax.get_ylabel())
                yield name, [f"{_named(str(bars.get_label()))}{_axis(axis, value, 'value')}"]


def _inside(ax: Axes, points: Any) -> bool:
    """Whether all points are within the axes: what is outside is left out of the file, and the order would be lost."""
    (left, right), (low, high) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
    x, y = points[:, 0], points[:, 1]
    return bool(((x >= left) & (x <= right) & (y >= low) & (y <= high)).all())


def _point_text(ax: Axes, label: str, x: float, y: float) -> str:
    return f"{_named(label)}{_axis(ax.get_xlabel(), x, 'x')}; {_axis(ax.get_ylabel(), y, 'y')}"


def _axis(name: str, value: float, otherwise: str) -> str:
    return f"{' '.join(name.split()) or otherwise}: {value:.4g}"


def _named(label: str) -> str:
    return "" if label.startswith("_") or label in ("", "None") else f"{label}. "


def _add_titles(root: ElementTree.Element, titles: dict[str, list[str]]) -> None:
    for group in root.iter(f"{{{SVG}}}g"):
        texts = titles.get(group.get("id", ""))
        if texts is None:
            continue
        marks = list(group.iter(f"{{{SVG}}}use")) or list(group.iter(f"{{{SVG}}}path"))
        if len(marks) != len(texts):
            continue  # points that fell together were drawn once: no value is better than another's
        for mark, text in zip(marks, texts, strict=True):
            ElementTree.SubElement(mark, f"{{{SVG}}}title").text = text


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Puts `prefix` before every identifier and before every use of one; equal pictures, which share one, are numbered."""
    seen: Counter[str] = Counter()
    known = {element.get("id") for element in root.iter() if element.get("id")}
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "id":
                seen[value] += 1
                element.set(name, f"{prefix}-{value}" + (f"-{seen[value]}" if seen[value] > 1 else ""))
            elif name in ("href", f"{{{XLINK}}}href") and value[1:] in known and value.startswith("#"):
                element.set(name, f"#{prefix}-{value[1:]}")
            elif "url(#" in value:
                element.set(name, re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", value))
