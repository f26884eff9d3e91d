"""Serve an opened store to a browser on this machine: a page, the images and the soft masks it shows, nothing else.

It listens on 127.0.0.1 and answers only requests that name it so: a foreign page cannot read it through a host name
of its own. Threads, because browsers hold connections open that they do not use yet.
"""

import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from shared.errors import DataError
from stage1_priors.inspect.catalogue import Query
from stage1_priors.inspect.page import render
from stage1_priors.inspect.view import View

_PICTURE = re.compile(r"/(image|prior)/(\d{1,12})\.(?:jpg|png)")


def make_server(view: View, port: int) -> ThreadingHTTPServer:
    """A server that is bound, and answers once its `serve_forever` runs.

    Args:
        view: The opened store.
        port: TCP port; 0: any free one.

    Raises:
        DataError: The port is taken.
    """
    handler = type("Handler", (_Handler,), {"view": view})
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise DataError(
            f"port {port} cannot be used ({error.strerror}); choose another with --port"
        ) from error


def address(server: ThreadingHTTPServer) -> str:
    """Where a browser finds the server; a path goes after it."""
    return f"http://127.0.0.1:{server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    """Answers GET requests."""

    view: View
    server_version = "l2l"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        """A page, a picture, or one line that says why not."""
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in ("127.0.0.1", "localhost"):
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"only for this machine\n")
            return
        target = urlsplit(self.path)
        picture = _PICTURE.fullmatch(target.path)
        try:
            if picture:
                self._picture(picture[1], int(picture[2]))
            elif target.path == "/":
                query = Query.parse(parse_qs(target.query, keep_blank_values=True))
                self._answer(HTTPStatus.OK, "text/html", render(self.view, query, embed=False).encode())
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"nothing here\n")
        except DataError as error:
            status = HTTPStatus.NOT_FOUND if picture else HTTPStatus.BAD_REQUEST
            self._answer(status, "text/plain", f"{error}\n".encode())

    def _picture(self, kind: str, row: int) -> None:
        if kind == "image":
            self._answer(HTTPStatus.OK, "image/jpeg", self.view.image_jpeg(row), keep=True)
        else:
            self._answer(HTTPStatus.OK, "image/png", self.view.prior_png(row), keep=True)

    def _answer(self, status: HTTPStatus, kind: str, body: bytes, *, keep: bool = False) -> None:
        """Send a whole answer; `keep` lets the browser keep it, as a finished row never changes."""
        text = "; charset=utf-8" if kind.startswith("text/") else ""
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind + text)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cache-Control", "private, max-age=3600" if keep else "no-store")
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the reader turned to another page

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: what was looked at is nobody's business."""
