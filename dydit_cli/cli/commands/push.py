"""Push a checkpoint to the Hugging Face hub, with a card: what it is, how it was made, its figures, licence, how to load it.

Whoever pushes says the licence: weights that began at the DiT authors' release are cc-by-nc-4.0.

Example: `dydit push runs/digits-0.5 me/digits-0.5 --license apache-2.0 --with runs/profile-0.5 --dry-run`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.cli import console, options
from dydit_cli.options import Arg, Opt


def push(
    checkpoint: options.Ckpt,
    repo: Annotated[str, Arg("REPO", "The repository, OWNER/NAME; made where it is not there.")],
    license: Annotated[str, Opt("What the weights may be used for, such as apache-2.0 or cc-by-nc-4.0.", metavar="ID")],
    *,
    shows: Annotated[
        Sequence[Path],
        Opt("What dydit wrote whose figures the card shows: profiles, evaluations and so on.", ("--with",), metavar="RUN"),
    ] = (),
    private: Annotated[bool, Opt("Make a repository that others do not see.")] = False,
    dry_run: Annotated[bool, Opt("Show the card and the files, and push nothing.")] = False,
    loading: LoadOptions,
    json: options.Json = False,
) -> None:
    from dydit_cli.sharing.push import push as run

    done = run(checkpoint, repo, license=license, shows=shows, private=private, dry_run=dry_run, reading=loading)
    if json:
        console.as_json(done.to_dict())
        return
    if dry_run:
        console.say(done.card)
    files = ", ".join(f"{name} ({size / 1e6:.3g} MB)" for name, size in done.files.items())
    console.say(f"{'not pushed' if done.url is None else done.url}: {files}")
