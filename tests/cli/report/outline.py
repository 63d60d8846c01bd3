"""What the tests ask of a page, read off its HTML."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Outline(HTMLParser):
    """What the tests ask of a page: its identifiers, links, tables and figures."""

    tags: Counter[str] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    attributes: list[tuple[str, str]] = field(default_factory=list)
    headings: list[dict[str, str]] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    tables: list[bool] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []

    @classmethod
    def of(cls, page: str) -> Outline:
        outline = cls()
        outline.feed(page)
        return outline

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        self.attributes += values.items()
        self.ids += [values["id"]] if "id" in values else []
        self.links += [
            (name, values[name]) for name in ("src", "href", "xlink:href", "srcset", "data", "action") if name in values
        ]
        if tag == "table":
            self.tables.append(False)
        if tag == "thead":
            self.tables[-1] = True
        if tag == "th" and values.get("scope") == "col":
            self.headings.append({"class": values.get("class", ""), "unit": "", "name": ""})
        if tag == "figure":
            self.figures.append("")
        if tag not in ("meta", "link", "img", "br"):
            self._open.append("unit" if "unit" in values.get("class", "").split() else tag)

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if "script" not in self._open and "style" not in self._open:
            self.text += data
        if "unit" in self._open:
            self.headings[-1]["unit"] += data
        elif "thead" in self._open:
            self.headings[-1]["name"] += data
        if "figcaption" in self._open:
            self.figures[-1] += data
