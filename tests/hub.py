"""As much of the Hugging Face hub as pushing and downloading ask for, on the loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_of_a_test"

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """`files` map repository and path to bytes, `calls` are what was asked; with `refuses` nothing is taken."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[tuple[str, str], bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.private: dict[str, bool] = {}
        self.calls: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *parts: Any) -> None:
        pass

    def answer(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any, code: int = 200) -> None:
        self.answer(json.dumps(value).encode(), code, Content_Type="application/json")

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def begin(self) -> tuple[list[str], bytes]:
        path, body = unquote(self.path.partition("?")[0]), self.body()
        self.server.calls.append(f"{self.command} {path}")
        return path.strip("/").split("/"), body

    def do_POST(self) -> None:
        parts, body = self.begin()
        values = json.loads(body) if body and "commit" not in parts else {}
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.json({"error": "Invalid credentials"}, 401)
        elif parts[-2:] == ["repos", "create"]:
            repo = f"{values['organization']}/{values['name']}"
            self.server.private[repo] = bool(values.get("private")) or values.get("visibility") == "private"
            self.json({"url": f"{self.server.url}/{repo}"})
        elif parts[-1] == "validate-yaml":
            self.json({"errors": [], "warnings": []})
        elif "preupload" in parts:
            large = {file["path"]: file["path"].endswith(".safetensors") for file in values["files"]}
            modes = [
                {"path": path, "uploadMode": "lfs" if big else "regular", "shouldIgnore": False} for path, big in large.items()
            ]
            self.json({"files": modes})
        elif parts[-2:] == ["objects", "batch"]:
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.url}/blob/{one['oid']}"}}} for one in values["objects"]
            ]
            self.json({"transfer": "basic", "objects": objects})
        elif "commit" in parts:
            repo = "/".join(parts[2:4])
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.server.files[repo, value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    self.server.files[repo, value["path"]] = self.server.blobs[value["oid"]]
            url = f"{self.server.url}/{repo}/commit/{COMMIT}"
            self.json({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})
        else:
            self.json({"error": f"not here: {parts}"}, 404)

    def do_PUT(self) -> None:
        parts, body = self.begin()
        assert hashlib.sha256(body).hexdigest() == parts[1]
        self.server.blobs[parts[1]] = body
        self.answer(b"")

    def do_GET(self) -> None:
        parts, _ = self.begin()
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            repo = "/".join(parts[2:4])
            names = [path for owner, path in self.server.files if owner == repo]
            if not names:
                self.answer(json.dumps({"error": "Repository not found"}).encode(), 404, X_Error_Code="RepoNotFound")
            elif "tree" in parts:
                sizes = {path: len(self.server.files[repo, path]) for path in names}
                self.json([{"type": "file", "path": path, "size": size, "oid": COMMIT} for path, size in sizes.items()])
            else:
                self.json({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": path} for path in names]})
        elif "resolve" in parts:
            content = self.server.files.get(("/".join(parts[:2]), "/".join(parts[4:])))
            if content is None:
                self.answer(b"", 404, X_Error_Code="EntryNotFound")
            else:
                self.answer(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=COMMIT)
        else:
            self.json({"error": f"not here: {parts}"}, 404)

    do_HEAD = do_GET  # noqa: N815


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that runs for the length of the block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
