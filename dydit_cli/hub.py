"""The Hugging Face hub: which names may be its, downloading and uploading."""

from __future__ import annotations

import re
from pathlib import Path

from dydit_cli.errors import DyditError


def is_hub_id(name: str) -> bool:
    """`org/name`."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name))


def may_be_hub_id(path: str) -> bool:
    """As `is_hub_id`, unless there is a folder `org` here: then it is a local path with a slip."""
    return is_hub_id(path) and not Path(path.split("/")[0]).exists()


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
        raise DyditError(f"{name}: no such path here, and the Hugging Face hub does not give it ({_line(error)})") from None


def upload(folder: Path, name: str, *, private: bool, message: str) -> str:
    """Commits all that is in `folder` to the hub's repository `name`, made where it is not there, and returns the commit's
    address; raises `DyditError` where the hub cannot be had or refuses."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise DyditError(f"{name}: to push to the Hugging Face hub: pip install huggingface_hub") from None
    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=message).commit_url)
    except Exception as error:
        refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        mend = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there" if refused else "try it again"
        raise DyditError(f"{name}: the Hugging Face hub does not take it ({_line(error)}); {mend}") from None


def _line(error: BaseException) -> str:
    """What was the matter in the first place: of an error that was raised from another one, that one's."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
