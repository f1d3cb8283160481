"""A small Hugging Face Hub on loopback: the endpoints through which huggingface_hub finds and fetches models."""

import hashlib
import json
import re
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

COMMIT = "c0ffee" * 6 + "c0ff"


@dataclass(frozen=True)
class Fetch:
    """An answered request for the content of a file."""

    file: str
    num_bytes: int
    is_range: bool


@dataclass
class FakeHub(AbstractContextManager["FakeHub"]):
    """Serves directories as models, all at one commit, to whoever has the token, if there is one.

    Attributes:
        models: Directories by `org/name`.
        token: What must be sent; empty for public models.
        fetches: Files that were asked for, in order.
    """

    models: dict[str, Path]
    token: str = ""
    fetches: list[Fetch] = field(default_factory=list)

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def bytes_of(self, suffix: str) -> int:
        """Bytes that were fetched of files whose names end so."""
        return sum(fetch.num_bytes for fetch in self.fetches if fetch.file.endswith(suffix))


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        repo = next((name for name in self.hub.models if f"/{name}" in path), "")
        is_allowed = not self.hub.token or self.headers.get("authorization") == f"Bearer {self.hub.token}"
        if not repo or not is_allowed:
            self._refuse(HTTPStatus.UNAUTHORIZED, "RepoNotFound")
        elif path.startswith("/api/models/") and "/tree/" in path:
            self._send_json(self._tree(self.hub.models[repo]))
        elif path.startswith("/api/models/"):
            self._send_info(repo, path)
        else:
            self._send_file(self.hub.models[repo], path)

    def _tree(self, directory: Path) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _etag(file)}
            for file in sorted(directory.iterdir())
        ]

    def _send_info(self, repo: str, path: str) -> None:
        revision = path.partition("/revision/")[2]
        if revision not in {"", "main", "v1", COMMIT}:
            self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
        else:
            self._send_json({"id": repo, "sha": COMMIT, "siblings": []})

    def _send_file(self, directory: Path, path: str) -> None:
        file = directory / path.rpartition("/")[2]
        if not file.is_file():
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")
            return
        content, size = file.read_bytes(), file.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or size), size - 1)
            content = content[first : last + 1]
        self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self._headers(len(content), {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})
        if self.command == "GET":
            self.hub.fetches.append(Fetch(file.name, len(content), asked is not None))
            self.wfile.write(content)

    def _send_json(self, document: object) -> None:
        content = json.dumps(document).encode()
        self.send_response(HTTPStatus.OK)
        self._headers(len(content), {"Content-Type": "application/json"})
        self.wfile.write(content)

    def _refuse(self, status: HTTPStatus, code: str) -> None:
        self.send_response(status)
        self._headers(0, {"X-Error-Code": code})

    def _headers(self, num_bytes: int, headers: dict[str, str]) -> None:
        for name, value in (headers | {"Content-Length": str(num_bytes)}).items():
            self.send_header(name, value)
        self.end_headers()


def _etag(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:40]
