"""Sections as one HTML page that needs nothing else: no network, no second file. Its words are in templates/page.html."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from dydit_cli.reports.format import shown
from dydit_cli.reports.section import Column, Gallery, Metric, Section, SvgFigure, Table
from dydit_cli.reports.sliders import sliders
from dydit_cli.reports.words import asset, environment
from dydit_cli.version import __version__

# anchors and headings, in their order
PARTS = {
    "films": "Step by step",
    "budgets": "Budgets",
    "protocol": "Protocol",
    "figures": "Figures",
    "tables": "Tables",
    "samples": "Samples",
    "versions": "Versions",
    "reproduce": "How to reproduce",
}

WIDTH = re.compile(r'viewBox="0 0 ([\d.]+) [\d.]+"')

SHORT = 32  # letters of a row's name that stay on one line

FINE = 100  # pixels a side: of smaller pictures the pixels are kept visible

POINT = 4 / 3  # pixels

UNIT_AFTER = re.compile(r"(?<=\d) (?=%|\u00d7|[TGMk]?MACs\b|m?s\b|min\b|h\b)")

MOST_METRICS = 6

MOST_FILMS = 2  # they are to be looked at, and not to be scrolled past


def render(sections: Sequence[Section], title: str | None = None) -> str:
    """The page: a summary, the protocol, figures, tables, samples, versions, and how to come by it again."""
    script = asset("page.js")
    budgets, sections = sliders(sections)
    content: dict[str, Any] = {
        "films": [one.film for one in sections if one.film is not None][:MOST_FILMS],
        "budgets": budgets,
        "figures": numbered(sections, "figures"),
        "tables": numbered(sections, "tables"),
        "samples": numbered(sections, "galleries"),
        "versions": version_table(sections),
        "commands": unique([one.origin.steps for one in sections] + [one.origin.commands for one in sections]),
        "unstored": unique([one.origin.unstored for one in sections]),
        "recipes": {name: text for one in sections for name, text in one.files.items()},
    }
    filled = {
        **content,
        "protocol": any(one.protocol for one in sections),
        "reproduce": content["commands"] or content["unstored"] or content["recipes"],
    }
    return (
        environment()
        .get_template("page.html")
        .render(
            **{function.__name__: function for function in (is_fine, plate_width, png, prose, shown, svg, table_classes)},
            title=title or default_title(sections),
            version=__version__,
            style=Markup(asset("page.css")),
            script=Markup(script),
            script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
            sections=sections,
            told=[one for one in sections if one.summary],
            metrics=first_metrics(sections),
            parts={anchor: heading for anchor, heading in PARTS.items() if filled[anchor]},
            **content,
        )
    )


def default_title(sections: Sequence[Section]) -> str:
    """What the page is of."""
    if sections[0].about == "demo":
        return "A Diffusion Transformer made dynamic: the demo on handwritten digits"
    names = [section.name for section in sections]
    return f"Report: {', '.join(names)}" if len(names) <= 3 else f"Report: {', '.join(names[:2])} and {len(names) - 2} more"


def first_metrics(sections: Sequence[Section]) -> list[Metric]:
    """Those that one input alone has: several inputs are compared by the tables and the summary."""
    counts = Counter(metric.label for section in sections for metric in section.metrics)
    return [metric for section in sections for metric in section.metrics if counts[metric.label] == 1][:MOST_METRICS]


def numbered(sections: Sequence[Section], part: str) -> list[tuple[Section, list[tuple[int, Any]]]]:
    """Each section that has items of this part, and these with their numbers on the page."""
    groups, number = [], 0
    for section in sections:
        items = list(enumerate(getattr(section, part), number + 1))
        number += len(items)
        if items:
            groups.append((section, items))
    return groups


def version_table(sections: Sequence[Section]) -> Table | None:
    """What wrote each input."""
    tools = sorted({tool for section in sections for tool in section.versions})
    rows = [[section.name, *(section.versions.get(tool) for tool in tools)] for section in sections if section.versions]
    return Table("", [Column("input"), *(Column(tool) for tool in tools)], rows) if rows else None


def unique(lists: Sequence[Sequence[str]]) -> list[str]:
    """All of them in their order, each once."""
    return list(dict.fromkeys(line for lines in lists for line in lines))


def prose(text: str) -> str:
    """A number stays on the line of its unit."""
    return UNIT_AFTER.sub("\N{NO-BREAK SPACE}", text)


def table_classes(table: Table) -> str:
    """`sortable` for several rows, `short` for short names."""
    short = all(len(shown(row[0], table.columns[0])) <= SHORT for row in table.rows)
    return " ".join([*(["sortable"] if len(table.rows) > 1 else []), *(["short"] if short else [])])


def svg(figure: SvgFigure) -> Markup:
    """The figure's element. The SVG is ours, and matplotlib escaped its texts."""
    return Markup(figure.svg.replace("<svg ", f'<svg role="img" aria-label="{escape(figure.title)}" ', 1))


def plate_width(figure: SvgFigure) -> str:
    """The width that it was drawn at, in pixels."""
    width = WIDTH.search(figure.svg)
    return f"{float(width.group(1)) * POINT:.0f}" if width else ""


def png(data: bytes) -> str:
    """A PNG as a link that holds it."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def is_fine(gallery: Gallery) -> bool:
    """Whether its pictures are small."""
    return all(picture.width <= FINE for picture in gallery.pictures)
