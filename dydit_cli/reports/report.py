"""`dydit report`: one page of what runs left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dydit_cli.artifacts.base import identify
from dydit_cli.artifacts.samples import SampleFolder
from dydit_cli.errors import DyditError
from dydit_cli.figures.base import find_figure
from dydit_cli.files import check_output, write_text
from dydit_cli.reports.fronts import frontier_sections
from dydit_cli.reports.measured import bench_sections, evaluation_sections, loss_sections, sample_sections
from dydit_cli.reports.page import render
from dydit_cli.reports.paths import without_paths
from dydit_cli.reports.pictures import svg_figure
from dydit_cli.reports.profiles import comparison_sections, profile_sections, width_sections
from dydit_cli.reports.runs import checkpoint_sections
from dydit_cli.reports.section import Section
from dydit_cli.reports.studies import demo_sections, study_sections

# by kind of artifact: what makes sections of one, given its name and a prefix for identifiers
SECTIONS: dict[str, Callable[[Any, str, str], list[Section]]] = {
    "bench": bench_sections,
    "checkpoint": checkpoint_sections,
    "comparison": comparison_sections,
    "demo": demo_sections,
    "evaluation": evaluation_sections,
    "frontier": frontier_sections,
    "losses": loss_sections,
    "profile": profile_sections,
    "run": checkpoint_sections,
    "samples": sample_sections,
    "study": study_sections,
    "width": width_sections,
}

ENDINGS = (".html", ".htm")


@dataclass(frozen=True)
class Report:
    """The page that was written, and what is on it."""

    path: Path
    sections: list[Section]
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "out": str(self.path),
            "bytes": self.bytes,
            "sections": [
                {"name": one.name, "about": one.about, "figures": [figure.title for figure in one.figures]}
                for one in self.sections
            ],
        }


def collect(runs: Sequence[str | Path]) -> list[Section]:
    """The sections of every folder or file in `runs`, in their order; equal names are numbered.

    Raises `DyditError` for one that is missing, damaged, no artifact or named twice, or where there is none.
    """
    paths = [Path(run) for run in runs]
    if not paths:
        raise DyditError("nothing to report; name folders that dydit wrote")
    for i, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:i]]:
            raise DyditError(f"{path}: is named twice; name every folder once")
    kinds = [identify(path) for path in paths]
    sections: list[Section] = []
    folders: list[SampleFolder] = []
    first_samples = None
    for i, (path, kind) in enumerate(zip(paths, kinds, strict=True)):
        try:
            artifact = without_paths(kind.read(path))
            own = SECTIONS[kind.kind](artifact, path.resolve().name, f"s{i}")
        except (KeyError, TypeError, AttributeError) as error:
            raise DyditError(f"{path}: looks like {kind.name} and lacks {error}; write it again with this dydit") from None
        if isinstance(artifact, SampleFolder):
            folders.append(artifact)
            first_samples = len(sections) if first_samples is None else first_samples
        sections += own
    together = svg_figure(find_figure("samples"), folders, "together") if len(folders) > 1 else None
    if together is not None and first_samples is not None:
        sections[first_samples] = replace(sections[first_samples], figures=[together])
    return numbered(sections)


def numbered(sections: list[Section]) -> list[Section]:
    """Sections whose names are different: a second `profile` becomes `profile (2)`."""
    seen: Counter[str] = Counter()
    result = []
    for section in sections:
        seen[section.name] += 1
        count = seen[section.name]
        result.append(section if count == 1 else replace(section, name=f"{section.name} ({count})"))
    return result


def make_report(
    runs: str | Path | Sequence[str | Path], out: str | Path, *, title: str | None = None, force: bool = False
) -> Report:
    """As `report`; returns what is on the page too."""
    out = Path(out)
    if out.suffix.lower() not in ENDINGS:
        raise DyditError(f"{out}: a report is a page; end its name in .html")
    check_output(out, force)
    sections = collect([runs] if isinstance(runs, str | Path) else runs)
    page = render(sections, title)
    write_text(out, page)
    return Report(out, sections, len(page.encode()))


def report(runs: str | Path | Sequence[str | Path], out: str | Path, *, title: str | None = None, force: bool = False) -> Path:
    """Writes the page of `runs`, folders and JSON files that dydit's commands wrote, as the one HTML file `out`.

    The same inputs give the same bytes. Raises `DyditError` for an input that is none of dydit's or damaged, another
    ending than .html, or an existing `out` (without `force`).
    """
    return make_report(runs, out, title=title, force=force).path
