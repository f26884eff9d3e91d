"""A Hub of a few repositories on the loopback interface, as far as huggingface_hub asks one to fetch a snapshot."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit


class HubServer:
    """Repositories by name, each with folders by revision; `asked` has a line a request."""

    def __init__(self, repositories: dict[str, dict[str, Path]]) -> None:
        self.repositories = repositories
        self.asked: list[str] = []
        self.url = ""

    def commit(self, repository: str, revision: str) -> str:
        """Hash of what a revision holds."""
        digest = hashlib.sha1(repository.encode())
        for path in self.files(repository, revision):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def files(self, repository: str, revision: str) -> list[Path]:
        """The files of a revision."""
        return sorted(path for path in self.repositories[repository][revision].iterdir() if path.is_file())

    def revision(self, repository: str, name: str) -> str | None:
        """The branch of a branch's or a commit's name."""
        branches = self.repositories.get(repository, {})
        return next((one for one in branches if name in (one, self.commit(repository, one))), None)

    def answer(self, path: str) -> tuple[bytes, dict[str, str]] | None:
        """Body and headers; None where there is nothing."""
        parts = urlsplit(path).path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) == 6:
            repository, what = "/".join(parts[2:4]), parts[4]
            revision = self.revision(repository, parts[5])
            if revision is None:
                return None
            files = self.files(repository, revision)
            if what == "revision":
                siblings = [{"rfilename": file.name} for file in files]
                sha = self.commit(repository, revision)
                body: object = {"id": repository, "sha": sha, "siblings": siblings}
            else:
                body = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _etag(file)}
                    for file in files
                ]
            return json.dumps(body).encode(), {"Content-Type": "application/json"}
        if len(parts) == 5 and parts[2] == "resolve":
            repository = "/".join(parts[:2])
            revision = self.revision(repository, parts[3])
            found = (
                [file for file in self.files(repository, revision) if file.name == parts[4]]
                if revision
                else []
            )
            if revision and found:
                headers = {"ETag": f'"{_etag(found[0])}"', "X-Repo-Commit": self.commit(repository, revision)}
                return found[0].read_bytes(), headers
        return None


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serve_hub(repositories: dict[str, dict[str, Path]]) -> Iterator[HubServer]:
    """A Hub that can be asked at `url` until the block ends."""
    hub = HubServer(repositories)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the base class wants this name
            hub.asked.append(f"{self.command} {self.path}")
            found = hub.answer(self.path)
            body, headers = found or (b"", {"X-Error-Code": "RepoNotFound"})
            self.send_response(404 if found is None else 200)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
