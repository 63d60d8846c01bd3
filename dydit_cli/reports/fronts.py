"""The section of what `dydit frontier` writes."""

from __future__ import annotations

from dydit_cli.artifacts.frontier import Frontier
from dydit_cli.reports.format import frame_table, protocol
from dydit_cli.reports.pictures import svg_figures
from dydit_cli.reports.reproduce import how_made
from dydit_cli.reports.section import Metric, Section
from dydit_cli.reports.words import words


def frontier_sections(front: Frontier, name: str, id_prefix: str) -> list[Section]:
    """A front's folder."""
    summary, table = front.summary, front.table
    best, on = front.front("cost"), table.filter(like="on_front_of_").any(axis=1)
    table.insert(0, "mix", [front.label(mix) for mix in sorted(front.mixes, key=lambda mix: mix.macs_per_image)])
    table = table.drop(columns=["checkpoint", "flops_ratio", "sampler", "steps", "cache"])
    reference = summary["reference"]
    facts = {
        "reference": f"{reference['checkpoint']}, {reference['sampler']}, {reference['steps']} steps",
        **summary["settings"],
        **{key: summary[key] for key in ("images", "seed", "device")},
        **{f"judge {judge}": facts for judge, facts in summary.get("judges", {}).items()},
    }
    left = f"{summary['left']} mixes are not measured: the front is not finished. The same command continues it."
    return [
        Section(
            name=name,
            about=front.noun(),
            summary=words("frontier", s=summary, mixes=len(front.mixes), best=best, front=front),
            metrics=[Metric("mixes on the front", str(len(best)), f"of {len(front.mixes)}, over MACs")],
            protocol=protocol(facts),
            figures=svg_figures(front, id_prefix),
            tables=[
                frame_table("Mixes on a front, by rising MACs", table[on]),
                frame_table("All mixes, by rising MACs", table, folded=True),
            ],
            notes=[left] if summary["left"] else [],
            versions=summary["versions"],
            origin=how_made(name, summary),
        )
    ]
