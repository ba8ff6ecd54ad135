"""A local stand-in for the Hugging Face Hub, with the part of its HTTP interface that `hf_hub_download` uses."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A running server.

    Attributes:
        repositories: folder of each repository, by name.
        asked: all requests.
        cut_after: if given, break the connection after this many bytes of a file.
    """

    repositories: dict[str, Path]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    cut_after: int | None = None


@contextmanager
def serve(repositories: dict[str, Path]) -> Iterator[Hub]:
    hub = Hub(repositories)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body: bool):
            hub.asked.append(f"{self.command} {self.path}")
            parts = self.path.strip("/").split("/")
            repository, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            if repository not in hub.repositories:
                return self.refuse("RepoNotFound")
            if revision not in ("main", COMMIT):
                return self.refuse("RevisionNotFound")
            path = hub.repositories[repository] / name
            if not path.is_file():
                return self.refuse("EntryNotFound")
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content[: hub.cut_after])
                self.close_connection = hub.cut_after is not None

        def refuse(self, code: str):
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
