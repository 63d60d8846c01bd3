"""Pieces of the page: every text of an input goes through `esc`, once."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape as esc

from dydit_cli.reporting.section import Column, Drawn, Gallery, Key, Table, Value
from dydit_cli.reporting.tables import shown

WIDTH = re.compile(r'viewBox="0 0 ([\d.]+) [\d.]+"')
SHORT, SHORT_UNIT = 32, 24  # letters that stay on one line: of a row's name, of a unit
FINE = 100  # pixels a side: of smaller pictures the pixels are kept visible
POINT = 4 / 3  # pixels
UNIT_AFTER = re.compile(r"(?<=\d) (?=%|\u00d7|[TGMk]?MACs\b|m?s\b|min\b|h\b)")


def prose(text: str) -> str:
    """Escaped; a number stays on the line of its unit."""
    return UNIT_AFTER.sub("\N{NO-BREAK SPACE}", esc(text))


def keys_list(keys: Sequence[Key]) -> str:
    """The strip of figures to see first."""
    if not keys:
        return ""
    parts = [f"<div><dt>{esc(key.label)}</dt><dd><b>{esc(key.text)}</b>{esc(key.unit)}</dd></div>" for key in keys]
    return f'<dl class="keys">{"".join(parts)}</dl>'


def facts(title: str, about: str, pairs: Mapping[str, str]) -> str:
    """Settings and their values."""
    rows = "".join(f'<tr><th scope="row">{esc(name)}</th><td>{esc(value)}</td></tr>' for name, value in pairs.items())
    head = '<thead><tr><th scope="col">setting</th><th scope="col">value</th></tr></thead>'
    return f"<section>{heading(title, about)}<table>{head}<tbody>{rows}</tbody></table></section>"


def heading(title: str, about: str) -> str:
    """Which input what follows is of."""
    return f"<h3>{esc(title)}</h3>" if title == about else f"<h3>{esc(title)} <small>{esc(about)}</small></h3>"


def figure(number: int, drawn: Drawn) -> str:
    """A drawn figure under its number. The SVG is ours, and matplotlib escaped its texts."""
    width = WIDTH.search(drawn.svg)
    style = f"--width: {float(width.group(1)) * POINT:.0f}" if width else ""
    svg = drawn.svg.replace("<svg ", f'<svg role="img" aria-label="{esc(drawn.title)}" ', 1)
    caption = f"<b>Figure {number}. {esc(drawn.title)}.</b> {esc(drawn.caption)}"
    return (
        f'<figure class="drawn" id="figure-{number}"><div class="plate" style="{style}">{svg}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def table(number: int, content: Table) -> str:
    """A table under its number, folded where it is long."""
    name = f"<b>Table {number}.</b> {esc(content.caption)}"
    box = f'<div class="scroll">{grid(content)}</div>'
    if content.folded:
        count = f" ({len(content.rows)} rows)"
        return f'<details class="table" id="table-{number}"><summary>{name}{count}</summary>{box}</details>'
    return f'<figure class="table" id="table-{number}"><figcaption>{name}</figcaption>{box}</figure>'


def grid(content: Table) -> str:
    """The table itself."""
    head = "".join(_heading(column) for column in content.columns)
    body = "".join(
        f"<tr>{''.join(_cell(i, cell, column) for i, (cell, column) in enumerate(zip(row, content.columns, strict=True)))}</tr>"
        for row in content.rows
    )
    kinds = [
        *(["sortable"] if len(content.rows) > 1 else []),
        *(["short"] if all(len(shown(row[0], content.columns[0])) <= SHORT for row in content.rows) else []),
    ]
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def gallery(content: Gallery, label: str) -> str:
    """Pictures under their caption."""
    small = all(_width(picture.data) <= FINE for picture in content.pictures)
    images = "".join(
        f'<img src="data:image/png;base64,{base64.b64encode(picture.data).decode()}" alt="{esc(picture.text)}" '
        f'title="{esc(picture.text)}"{" class=fine" if small else ""}>'
        for picture in content.pictures
    )
    kind = "alone scroll" if len(content.pictures) == 1 else "pictures" if small else "pictures large"
    caption = f"<figcaption><b>{esc(label)}</b> {esc(content.caption)}.</figcaption>"
    return f'<figure class="gallery"><div class="{kind}">{images}</div>{caption}</figure>'


def _heading(column: Column) -> str:
    long = " long" if len(column.unit) > SHORT_UNIT else ""
    unit = f'<span class="unit{long}">{esc(column.unit)}</span>' if column.unit else ""
    kind = ' class="number"' if column.spec else ""
    return f'<th scope="col"{kind}>{esc(column.name)}{unit}</th>'


def _cell(place: int, value: Value, column: Column) -> str:
    first = value[0] if isinstance(value, tuple) else value
    data = "" if first is None else f' data-value="{esc(str(first))}"'
    kind = ' class="number"' if column.spec else ""
    tag, scope = ("th", ' scope="row"') if place == 0 else ("td", "")
    return f"<{tag}{scope}{kind}{data}>{esc(shown(value, column))}</{tag}>"


def _width(png: bytes) -> int:
    return int.from_bytes(png[16:20], "big")
