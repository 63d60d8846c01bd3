"""What a study leaves to read and to draw from: study.csv, summary.csv, study.md, study.json, samples.npz."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from dydit_cli import units
from dydit_cli.artifacts.study import KEYS, StudyTable, cache_of, other_steps
from dydit_cli.figures.tradeoff import row_label
from dydit_cli.files import atomic_file, write_text
from dydit_cli.studies.folder import FORMAT, StudyFolder
from dydit_cli.studies.measure import BY_JUDGE
from dydit_cli.studies.methods import STATIC, Row, method_of
from dydit_cli.studies.recipe import StudyRecipe


@dataclass(frozen=True)
class Column:
    """A figure as people read it: its heading, how many decimals, times what, and with which unit behind."""

    heading: str
    figure: str
    digits: int
    scale: float = 1.0
    unit: str = ""
    spread: bool = True

    def cell(self, mean: float, sd: float) -> str:
        """`99.7 ± 0.1 %`; without a standard deviation where there is none, or it means nothing."""
        if pd.isna(mean):
            return "-"
        text = f"{mean * self.scale:.{self.digits}f}"
        if self.spread and not pd.isna(sd):
            text += f" ± {sd * self.scale:.{self.digits}f}"
        return text + self.unit


EVERY = (
    Column("MACs per forward", "macs", 2, 1e-6, " M", spread=False),
    Column("ratio", "ratio", 3, spread=False),
    Column("of attention and MLP", "routed_ratio", 3, spread=False),
    Column("forwards per image", "forwards_per_image", 0, spread=False),
    Column("MACs per image", "macs_per_image", 3, 1e-9, " G", spread=False),
    Column("ms per image", "seconds_per_image", 2, 1000, spread=False),
    Column("speed-up", "speedup", 2, spread=False),
    Column("Fréchet distance", "frechet", 2),
    Column("recognised", "recognised", 1, 100, " %"),
    Column("precision", "precision", 3),
    Column("recall", "recall", 3),
    Column("held-out loss over static", "loss_ratio", 3),
)

FIGURES = tuple(column.figure for column in EVERY)

# what 80 columns hold
FEW = (*(EVERY[FIGURES.index(name)] for name in ("ratio", "speedup", "frechet", "recognised")), replace(EVERY[-1], digits=2))


def every(judges: Sequence[str]) -> tuple[Column, ...]:
    """`EVERY`, and behind the main judge's figures those of the others, by their names."""
    first, last = FIGURES.index("frechet"), FIGURES.index("recall") + 1
    judged = [column for column in EVERY[first:last] if column.figure in BY_JUDGE]
    others = [
        replace(column, heading=f"{column.heading}, {judge}", figure=f"{column.figure}_{judge}")
        for judge in judges[1:]
        for column in judged
    ]
    return (*EVERY[:last], *others, *EVERY[last:])


def shown(
    summary: pd.DataFrame,
    columns: Sequence[Column],
    name: Callable[[str, float, int | None, str | None], str],
    steps: int | None,
) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of the summary as people read it: mean ± standard deviation over the seeds. A line says its number
    of steps where it is another than the study's own, `steps`, and its cache where it has one."""
    known = [column for column in columns if summary[f"{column.figure}_mean"].notna().any()]
    lines = [
        [name(line["method"], line["target"], other_steps(line["steps"], steps), cache_of(line["cache"]))]
        + [column.cell(line[f"{column.figure}_mean"], line[f"{column.figure}_sd"]) for column in known]
        for line in summary.to_dict("records")
    ]
    return ["", *(column.heading for column in known)], lines


def short(method: str, target: float, steps: int | None = None, cache: str | None = None) -> str:
    """`dydit 0.5`; `dydit 0.5, 10 steps`; `static, fora:3`."""
    name = method if method_of(method).whole else f"{method} {target:g}"
    name = name if steps is None or method_of(method).hurries else f"{name}, {steps} steps"
    return name if cache is None else f"{name}, {cache}"


def protocol_line(protocol: dict[str, Any]) -> str:
    """How the figures came about, in a sentence or two."""
    share = protocol["finetune_share"]
    of = f" ({100 * share:.1f} % of the pre-training)" if share else ""
    text = (
        f"{protocol['model']} on {protocol['data']}; fine-tuned for {protocol['finetune_steps']} steps{of}; "
        f"{protocol['images']:,} samples a row, {units.sampling(protocol)}, cfg {protocol['cfg']:g}; "
        f"{judges_text(protocol)}; "
        f"{seeds_text(protocol['seeds'])}; "
        f"{protocol['device']}, torch {protocol['torch']}; {protocol['rows_done']} of {protocol['rows']} rows."
    )
    if "tome" in protocol:
        text += f" ToMe {protocol['tome']}."
    if protocol["timing"]:
        one = next(iter(protocol["timing"].values()))
        text += f" Time: median of {one['repeats']} sampling runs of {one['images']} images, {one['threads']} threads; the"
        text += " speed-up is over runs of the static model, taken in turn with the row's."
    return text


def judges_text(protocol: dict[str, Any]) -> str:
    """`features digits, reference digits`, for each judge."""
    judges = (protocol, *protocol.get("other_judges", {}).values())
    return "; ".join(f"features {judge['features'].partition(',')[0]}, reference {judge['reference']}" for judge in judges)


def seeds_text(seeds: Sequence[int]) -> str:
    """`mean ± standard deviation over seeds 0, 1, 2`."""
    several = len(seeds) > 1
    return f"{'mean ± standard deviation over seeds' if several else 'seed'} {', '.join(map(str, seeds))}"


def markdown(summary: pd.DataFrame, protocol: dict[str, Any]) -> str:
    """A table for a README, and how it came about."""
    columns = every(["", *protocol.get("other_judges", {})])
    headings, lines = shown(summary, columns, row_label, protocol.get("steps"))
    rule = "|".join(["---", *["---:"] * (len(headings) - 1)])
    body = [f"| {' | '.join(cells)} |" for cells in (headings, *lines)]
    return "\n".join([protocol_line(protocol), "", body[0], f"|{rule}|", *body[1:]]) + "\n"


SUMMARY_FILE, MARKDOWN_FILE = "summary.csv", "study.md"


@dataclass(frozen=True)
class Tables:
    """`table`: a line for each finished row. `summary`: method, target, steps, cache, how many seeds, and of every figure its
    mean and sample standard deviation (empty for one seed). MACs are of one forward and image, the mean over a sampling run;
    ratio is over the static model's, and of a DyDiT `routed_ratio`, which lambda steers, over its attention and MLP alone;
    `forwards_per_image` counts both halves of guidance, and macs_per_image is MACs times that; loss_ratio is of the held-out
    loss. `speedup` is over the static model's runs that were taken in turn with the row's, and so more exact than two rows'
    seconds, taken minutes apart."""

    folder: StudyFolder
    rows: list[Row]
    table: pd.DataFrame
    summary: pd.DataFrame
    protocol: dict[str, Any]

    def write(self) -> None:
        """Each file atomically."""
        path = self.folder.path
        with atomic_file(path / SUMMARY_FILE) as temporary:
            self.summary.to_csv(temporary, index=False)
        write_text(path / MARKDOWN_FILE, markdown(self.summary, self.protocol))
        samples = {row.what: pixels for row in self.rows if (pixels := self.folder.samples(row)) is not None}
        StudyTable(path, self.table, self.protocol, {}).write(samples)


def make_tables(folder: StudyFolder, recipe: StudyRecipe, rows: list[Row], facts: dict[str, Any]) -> Tables:
    """The tables of the rows that are done."""
    done = [row for row in rows if folder.done(row)]
    results = {row: folder.read(row) for row in done}
    # the same weights and the same noise: every static row has the same loss
    loss = next((values["loss"] for row, values in results.items() if row.method == STATIC and not row.cache), None)
    times = {row: folder.time(row) for row in done if row.seed == recipe.seeds[0]}
    figures, lines = [column.figure for column in every(recipe.evaluation.judges)], []
    for row, values in results.items():
        time = times.get(row)
        line = {
            **values,
            "cache": row.cache or float("nan"),  # as a CSV file is read
            **sampled(values, facts),
            **{name: time[name]["median"] if time else None for name in ("seconds_per_image", "speedup")},
            "loss_ratio": values["loss"] / loss if loss and values["loss"] is not None else None,
        }
        lines.append(line)
    columns = [*KEYS, "seed", *figures, "finetune_steps"]
    table = pd.DataFrame(lines, columns=columns).astype(dict.fromkeys(figures, "float64"))
    protocol = {
        "format": FORMAT,
        **facts,
        "rows": len(rows),
        "rows_done": len(done),
        "rows_names": [row.name for row in done],
        "timing": {row.what: time for row, time in times.items() if time},
    }
    return Tables(folder, rows, table, summarised(table, figures), protocol)


def sampled(values: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """A row's steps, forwards and MACs per image. Rows of older studies do not say them, and all have the study's steps."""
    if "macs_per_image" in values:
        return {}
    calls = facts.get("model_calls") or facts["steps"]
    forwards = None if calls is None else calls * (1 if facts["cfg"] == 1 else 2)
    macs = None if forwards is None else values["macs"] * forwards
    return {"steps": facts["steps"], "forwards_per_image": forwards, "macs_per_image": macs}


def summarised(table: pd.DataFrame, figures: Sequence[str]) -> pd.DataFrame:
    """Mean and standard deviation over seeds, in the order of the rows."""
    groups = table.groupby(list(KEYS), sort=False, dropna=False)
    parts: dict[str, Any] = {"seeds": groups["seed"].count()}
    for name in figures:
        parts |= {f"{name}_mean": groups[name].mean(), f"{name}_sd": groups[name].std()}
    return pd.DataFrame(parts).reset_index()
