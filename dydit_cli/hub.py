"""The Hugging Face hub: which names may be its, and downloading."""

from __future__ import annotations

import re
from pathlib import Path

from dydit_cli.errors import DyditError


def may_be_hub_id(path: str) -> bool:
    """`org/name`, unless there is a folder `org` here: then it is a local path with a slip."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", path)) and not Path(path.split("/")[0]).exists()


def download(name: str) -> Path:
    """The folder that holds the hub's repository `name`; raises `DyditError` where it cannot be had."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise DyditError(
            f"{name}: no such path here; to read it from the Hugging Face hub: pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    # the hub client raises its own and its network library's exceptions alike
    except Exception as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise DyditError(f"{name}: no such path here, and the Hugging Face hub does not give it ({reason})") from None
