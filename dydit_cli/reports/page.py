"""Sections as one HTML page that needs nothing else: no network, no second file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape as esc
from importlib.resources import files
from string import Template
from typing import Any

from dydit_cli.reports import page as elements
from dydit_cli.reports.format import shown
from dydit_cli.reports.section import Column, Drawn, Gallery, Key, Section, Table, Value
from dydit_cli.version import __version__

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


MOST_KEYS = 6

ORDER = (
    "demo", "pretrain", "convert", "prune", "finetune", "study", "profile", "losses", "sample", "evaluate", "bench",
)  # fmt: skip


def render(sections: Sequence[Section], title: str | None = None) -> str:
    """The page: a summary, the protocol, figures, tables, samples, versions, and how to come by it again."""
    title = title or default_title(sections)
    parts = [part for part in PARTS if part[2](sections)]
    links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name, _ in parts)
    body = [
        f'<header><p class="kicker">dydit {esc(__version__)}</p><h1>{esc(title)}</h1>',
        lead(sections),
        elements.keys_list(first_keys(sections)),
        *(
            f'<p class="note">{elements.prose(_named(section, note, sections))}</p>'
            for section in sections
            for note in section.notes
        ),
        f"<nav>{links}</nav></header>",
        *(f'<h2 id="{anchor}">{name}</h2>\n{make(sections)}' for anchor, name, make in parts),
        f"<footer>Written by dydit {esc(__version__)} from {_listed([s.name for s in sections])}. "
        "One file: it loads nothing else.</footer>",
    ]
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(_asset("page.html")).substitute(
        title=esc(title),
        version=esc(__version__),
        style=_asset("page.css"),
        script=script,
        script_hash=f"sha256-{digest}",
        body="\n".join(part for part in body if part),
    )


def default_title(sections: Sequence[Section]) -> str:
    """What the page is of."""
    first = sections[0]
    if first.about == "demo":
        return "A Diffusion Transformer made dynamic: the demo on handwritten digits"
    names = [section.name for section in sections]
    return f"Report: {', '.join(names)}" if len(names) <= 3 else f"Report: {', '.join(names[:2])} and {len(names) - 2} more"


def lead(sections: Sequence[Section]) -> str:
    """The summary in plain words; of several inputs, a paragraph each under its name."""
    said = [section for section in sections if section.summary]
    if len(said) == 1:
        return f'<p class="lead">{elements.prose(said[0].summary)}</p>'
    return "\n".join(
        f'<p class="lead"><b>{esc(section.name)}</b>{_about(section)}. {elements.prose(section.summary)}</p>'
        for section in said
    )


def first_keys(sections: Sequence[Section]) -> list[Key]:
    """Key figures that one input alone has: of several the tables and the summary speak."""
    counts = Counter(key.label for section in sections for key in section.keys)
    return [key for section in sections for key in section.keys if counts[key.label] == 1][:MOST_KEYS]


def protocols(sections: Sequence[Section]) -> str:
    """A block for each input."""
    blocks = [elements.facts(section.name, section.about, section.protocol) for section in sections if section.protocol]
    return f'<div class="facts">{"".join(blocks)}</div>' if blocks else ""


def figures(sections: Sequence[Section]) -> str:
    """All figures, numbered through."""
    return _numbered(sections, lambda section: section.figures, elements.figure)


def tables(sections: Sequence[Section]) -> str:
    """All tables, numbered through."""
    return _numbered(sections, lambda section: section.tables, elements.table)


def samples(sections: Sequence[Section]) -> str:
    """All pictures, numbered through."""
    return _numbered(
        sections, lambda section: section.galleries, lambda number, gallery: elements.gallery(gallery, f"Samples {number}.")
    )


def versions(sections: Sequence[Section]) -> str:
    """What wrote each input."""
    tools = sorted({tool for section in sections for tool in section.versions})
    rows = [[section.name, *(section.versions.get(tool) for tool in tools)] for section in sections if section.versions]
    table = Table("", [Column("input"), *(Column(tool) for tool in tools)], rows)
    return f'<div class="table scroll">{elements.grid(table)}</div>' if rows else ""


def reproduce(sections: Sequence[Section]) -> str:
    """The commands, each once, and the files that they want."""
    lines = joined([line for section in sections for line in section.commands])
    texts = {name: text for section in sections for name, text in section.files.items()}
    shown = [f"<pre><code>{esc(chr(10).join(lines))}</code></pre>"] if lines else []
    for name, text in texts.items():
        shown.append(
            f"<details><summary><b>{esc(name)}</b>, the recipe with every default written out</summary>"
            f"<pre><code>{esc(text)}</code></pre></details>"
        )
    return "\n".join(shown)


def joined(lines: Sequence[str]) -> list[str]:
    """Each command once, in the order of work; of two that write the same folder the one that names a recipe."""
    kept: dict[str, str] = {}
    for line in lines:
        target = line.rpartition(" --out ")[2] if " --out " in line else line
        key = f"{line.split()[1]} {target}"
        if key not in kept or " --recipe " in line:
            kept[key] = line
    return sorted(kept.values(), key=lambda line: ORDER.index(line.split()[1]))


Part = tuple[str, str, Callable[[Sequence[Section]], str]]

PARTS: tuple[Part, ...] = (
    ("protocol", "Protocol", protocols),
    ("figures", "Figures", figures),
    ("tables", "Tables", tables),
    ("samples", "Samples", samples),
    ("versions", "Versions", versions),
    ("reproduce", "How to reproduce", reproduce),
)


def _numbered(sections: Sequence[Section], of: Callable[[Section], Sequence[Any]], make: Callable[[int, Any], str]) -> str:
    """The items of every section, under its name where there are several sections."""
    shown, number = [], 0
    for section in sections:
        items = of(section)
        if items and len(sections) > 1:
            shown.append(elements.heading(section.name, section.about))
        for item in items:
            number += 1
            shown.append(make(number, item))
    return "\n".join(shown)


def _about(section: Section) -> str:
    return "" if section.about == section.name else f" ({esc(section.about)})"


def _named(section: Section, note: str, sections: Sequence[Section]) -> str:
    return note if len(sections) == 1 else f"{section.name}: {note}"


def _listed(names: Sequence[str]) -> str:
    return esc(", ".join(names))


def _asset(name: str) -> str:
    return (files("dydit_cli.reports") / name).read_text(encoding="utf-8")
