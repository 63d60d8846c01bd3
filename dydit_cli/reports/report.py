"""`dydit report`: one page of what runs left."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dydit_cli.errors import DyditError
from dydit_cli.figures.catalogue import SOURCES
from dydit_cli.files import check_output, write_text
from dydit_cli.reports.measured import bench_sections, evaluation_sections, loss_sections, sample_sections
from dydit_cli.reports.page import render
from dydit_cli.reports.pictures import draw_samples
from dydit_cli.reports.profiles import comparison_sections, profile_sections, width_sections
from dydit_cli.reports.runs import run_sections
from dydit_cli.reports.section import Section
from dydit_cli.reports.studies import demo_sections, study_sections

Read = Callable[[Path, str], list[Section]]


@dataclass(frozen=True)
class Kind:
    """What a report takes. `mark` is a file of such a folder, or for a file the keys of its JSON."""

    name: str
    mark: str | frozenset[str]
    read: Read


# the first that fits counts: a demo and a study hold files of other kinds too
KINDS = (
    Kind("a demo", "demo.json", demo_sections),
    Kind("a study", "study.csv", study_sections),
    Kind("a comparison", "compare.json", comparison_sections),
    Kind("a profile", "profile.json", profile_sections),
    Kind("a profile of heads and groups", "width.json", width_sections),
    Kind("samples", "samples.json", sample_sections),
    Kind("losses", SOURCES["losses"].mark, loss_sections),
    Kind("a training run", "metrics.jsonl", run_sections),
    Kind("a checkpoint", "config.json", run_sections),
    Kind("an evaluation", frozenset({"protocol", "notes"}), evaluation_sections),
    Kind("a benchmark", frozenset({"speedup", "parts", "settings"}), bench_sections),
)


def collect(runs: Sequence[str | Path]) -> list[Section]:
    """The sections of every folder or file in `runs`, in their order; equal names are numbered.

    Raises `DyditError` for one that is missing, damaged or none of `KINDS`, or named twice, or where there is none.
    """
    paths = [Path(run) for run in runs]
    if not paths:
        raise DyditError("nothing to report; name folders that dydit wrote")
    for i, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:i]]:
            raise DyditError(f"{path}: is named twice; name every folder once")
    found = [(path, kind_of(path)) for path in paths]
    sections: list[Section] = []
    for i, (path, kind) in enumerate(found):
        try:
            sections.extend(kind.read(path, f"s{i}"))
        except (KeyError, TypeError, AttributeError) as error:
            raise DyditError(f"{path}: looks like {kind.name} and lacks {error}; write it again with this dydit") from None
    samples = [path for path, kind in found if kind.read is sample_sections]
    together = draw_samples(samples, "together") if len(samples) > 1 else None
    if together is not None:
        first = next(i for i, section in enumerate(sections) if section.about == "samples")
        sections[first] = replace(sections[first], figures=[together, *sections[first].figures])
    return numbered(sections)


def kind_of(path: Path) -> Kind:
    """What `path` is; raises `DyditError` where it is nothing that a report takes."""
    if not path.exists():
        raise DyditError(f"{path}: not found; name a folder that dydit wrote")
    keys = _keys(path) if path.is_file() else set()
    for kind in KINDS:
        fits = (path / kind.mark).is_file() if isinstance(kind.mark, str) else kind.mark <= keys
        if fits:
            return kind
    marks = [f"{kind.name} ({kind.mark})" for kind in KINDS if isinstance(kind.mark, str)]
    raise DyditError(
        f"{path}: nothing that a report takes; it takes {', '.join(marks)}, and the JSON file of dydit evaluate or dydit bench"
    )


def numbered(sections: list[Section]) -> list[Section]:
    """Sections whose names are different: a second `profile` becomes `profile (2)`."""
    seen: dict[str, int] = {}
    found = []
    for section in sections:
        seen[section.name] = seen.get(section.name, 0) + 1
        count = seen[section.name]
        found.append(section if count == 1 else replace(section, name=f"{section.name} ({count})"))
    return found


def _keys(path: Path) -> set[str]:
    """The keys of a JSON file, none where it is something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    return set(values) if isinstance(values, dict) else set()


ENDINGS = (".html", ".htm")


def report(runs: str | Path | Sequence[str | Path], out: str | Path, *, title: str | None = None, force: bool = False) -> Path:
    """Writes the page of `runs`, folders and JSON files that dydit's commands wrote, as the one HTML file `out`.

    The same inputs give the same bytes. Raises `DyditError` for an input that is none of dydit's or damaged, another
    ending than .html, or an existing `out` (without `force`).
    """
    out = Path(out)
    if out.suffix.lower() not in ENDINGS:
        raise DyditError(f"{out}: a report is a page; end its name in .html")
    check_output(out, force)
    sections = collect([runs] if isinstance(runs, str | Path) else runs)
    write_text(out, render(sections, title))
    return out
