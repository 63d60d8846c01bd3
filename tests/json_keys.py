"""The keys of `--json` as docs/pages/reference/json.md documents them, held against what a command printed."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from tests.conftest import ROOT

SHARED = "How images are drawn"


@cache
def documented() -> dict[str, dict[str, bool]]:
    """By command, such as "recipes ls": each key, dotted, and whether it is always there."""
    sections: dict[str, dict[str, bool]] = {}
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL):
        name = title.strip("`").removeprefix("dydit ")
        also = sections[SHARED] if "Also [how images are drawn]" in body else {}
        keys = dict(also)
        for cell in re.findall(r"^\| (`.*?) \|", body, flags=re.MULTILINE):
            for names, when in re.findall(r"((?:`[^`]+`(?:, )?)+)(?: \((.*?)\))?", cell):
                keys |= dict.fromkeys(re.findall(r"`([^`]+)`", names), not when)
        sections[name] = keys
    return sections


PAGE = "docs/pages/reference/json.md"


def check_keys(command: str, printed: dict[str, Any]) -> None:
    """Fails where a key is printed and not documented, or the other way round."""
    keys = documented()[command]
    assert keys, f"{PAGE} does not tell what dydit {command} --json prints"
    levels: dict[str, dict[str, bool]] = {"": {}}
    for key, always in keys.items():
        level, _, name = key.rpartition(".")
        levels.setdefault(level, {})[name] = always
        if level:
            levels[""].setdefault(level.removesuffix("[]"), True)
    for level, expected in levels.items():
        value = printed[level.removesuffix("[]")] if level else printed
        for found in value if isinstance(value, list) else [value]:
            where = f"dydit {command} --json{', ' + level if level else ''}"
            assert not found.keys() - expected.keys(), f"{where}: not in {PAGE}: {sorted(found.keys() - expected.keys())}"
            missing = {name for name, always in expected.items() if always} - found.keys()
            assert not missing, f"{where}: in {PAGE}, and not printed: {sorted(missing)}"
