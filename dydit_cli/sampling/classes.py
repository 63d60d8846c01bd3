"""Classes as `--classes` takes them: numbers, ranges and names, such as `0,5-7,goldfish`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence

from dydit_cli.errors import DyditError

NUMBER = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


def parse_classes(text: str, num_classes: int, labels: Mapping[int, str] | None = None) -> list[int]:
    """The numbers of the classes that `text` lists, in its order.

    `labels` are the classes' names. A name matches a whole label or one of its synonyms between commas; where none matches
    exactly, case does not count. What can be a number is one. Raises `DyditError` for what is no class, or is two, and for
    a model without classes.
    """
    exact, folded = ({} if labels is None else names_of(labels, form) for form in (str, str.casefold))
    parts = [part.strip() for part in text.split(",")]
    if not num_classes:
        raise DyditError(f"--classes {text}: the model has no classes; leave it out")
    classes: list[int] = []
    while parts:
        number = NUMBER.fullmatch(parts[0])
        if number:
            first, last = int(number[1]), int(number[2] or number[1])
            classes += range(first, (last if last < num_classes else max(first, num_classes)) + 1)
            del parts[0]
        else:
            length, known = _named(parts, exact, folded, text)
            classes.append(known)
            del parts[:length]
    if not classes or max(classes) >= num_classes:
        raise DyditError(f"--classes {text}: the model has classes 0 to {num_classes - 1}")
    return classes


Names = Mapping[str, Sequence[int]]


def names_of(labels: Mapping[int, str], form: Callable[[str], str]) -> Names:
    """Every label and every synonym in one, in the `form` that is compared, with the classes that it stands for."""
    names: dict[str, list[int]] = {}
    for number, label in labels.items():
        parts = [form(part.strip()) for part in label.split(",")]
        for name in {", ".join(parts), *parts}:
            names.setdefault(name, []).append(number)
    return names


def _named(parts: Sequence[str], exact: Names, folded: Names, text: str) -> tuple[int, int]:
    """How many of the first `parts` are one name, for a label may have commas, and its class."""
    longest = max((name.count(",") for name in exact), default=0) + 1
    for length in range(min(longest, len(parts)), 0, -1):
        name = ", ".join(parts[:length])
        numbers = exact.get(name) or folded.get(name.casefold()) or ()
        if len(numbers) == 1:
            return length, numbers[0]
        if numbers:
            several = " and ".join(map(str, numbers))
            raise DyditError(f"--classes {text}: {name!r} is the name of classes {several}; write the number")
    if not exact:
        raise DyditError(f"--classes {text}: {parts[0]!r} is no class number; write for instance 0,1,5-7")
    near = difflib.get_close_matches(parts[0], [*exact, *folded], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "dydit inspect CKPT --json lists the names"
    raise DyditError(f"--classes {text}: no class has the name {parts[0]!r}; {hint}")


def class_text(classes: Sequence[int]) -> str:
    """[0, 1, 2, 7] as `0-2,7`, the way `--classes` takes it."""
    runs: list[list[int]] = []
    for number in classes:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
