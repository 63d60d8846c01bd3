"""What `dydit evaluate` leaves: figures of samples, with everything that they depend on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dydit_cli.artifacts.base import JsonFile
from dydit_cli.files import write_json
from dydit_cli.provenance import command_line


@dataclass(frozen=True)
class Evaluation(JsonFile):
    """`figures` by name, None where one cannot be had; the `protocol`; `notes` on what to mind when reading them."""

    kind = "evaluation"
    name = "an evaluation"
    made_by = "dydit evaluate SAMPLES --out FILE.json"
    keys = frozenset({"protocol", "notes"})

    figures: dict[str, float | None]
    protocol: dict[str, Any]
    notes: list[str]
    command: str | None = field(default_factory=command_line)

    def to_dict(self) -> dict[str, Any]:
        """The figures at the top, then `protocol` and `notes`."""
        return {**self.figures, "protocol": self.protocol, "notes": self.notes}

    def to_json(self) -> dict[str, Any]:
        """As `to_dict`, with the command that made it."""
        return {**self.to_dict(), **({"command": self.command} if self.command else {})}

    def write(self, path: str | Path) -> None:
        """Writes the file atomically."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> Evaluation:
        values = cls.read_values(Path(path))
        figures = {name: value for name, value in values.items() if name not in (*cls.keys, "command")}
        return cls(figures, values["protocol"], values["notes"], values.get("command"))
