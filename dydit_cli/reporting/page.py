"""Sections as one HTML page that needs nothing else: no network, no second file."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape as esc
from importlib.resources import files
from string import Template
from typing import Any

import dydit_cli
from dydit_cli.reporting import elements
from dydit_cli.reporting.section import Column, Key, Section, Table

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
        f'<header><p class="kicker">dydit {esc(dydit_cli.__version__)}</p><h1>{esc(title)}</h1>',
        lead(sections),
        elements.keys_list(first_keys(sections)),
        *(
            f'<p class="note">{elements.prose(_named(section, note, sections))}</p>'
            for section in sections
            for note in section.notes
        ),
        f"<nav>{links}</nav></header>",
        *(f'<h2 id="{anchor}">{name}</h2>\n{make(sections)}' for anchor, name, make in parts),
        f"<footer>Written by dydit {esc(dydit_cli.__version__)} from {_listed([s.name for s in sections])}. "
        "One file: it loads nothing else.</footer>",
    ]
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(_asset("page.html")).substitute(
        title=esc(title),
        version=esc(dydit_cli.__version__),
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
    return (files("dydit_cli.reporting") / name).read_text(encoding="utf-8")
