"""The server: what it answers, and what it refuses."""

import http.client
import threading
from contextlib import contextmanager

import pytest

from shared.errors import DataError
from stage1_priors.inspect.server import make_server


@contextmanager
def serving(view):
    """A port that answers."""
    with make_server(view, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def port(view):
    with serving(view) as number:
        yield number


def get(port, path, host=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.getheader("Content-Type"), body


def test_pages_and_pictures(port, view):
    status, kind, body = get(port, "/?status=no_box")
    assert (status, kind) == (200, "text/html; charset=utf-8") and b"6 of 60 pairs" in body
    assert get(port, "/image/0.jpg") == (200, "image/jpeg", view.image_jpeg(0))
    assert get(port, "/prior/1.png") == (200, "image/png", view.prior_png(1))


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/?page=x", 400, b"page 'x' is not a number\n"),
        ("/?status=fine", 400, b"status 'fine'"),
        ("/prior/60.png", 404, b"rows 60..60 leave"),
        ("/image/999999999999.jpg", 404, b"leave the store"),
        ("/image/../../etc/passwd", 404, b"nothing here"),
        ("/other", 404, b"nothing here"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(port, path, status, said):
    got, kind, body = get(port, path)
    assert (got, kind) == (status, "text/plain; charset=utf-8") and said in body and body.count(b"\n") == 1


def test_foreign_host_names_are_refused(port):
    assert get(port, "/", host=f"elsewhere.example:{port}")[0] == 403
    assert get(port, "/image/0.jpg", host="elsewhere.example")[0] == 403
    assert get(port, "/", host=f"localhost:{port}")[0] == 200


def test_a_taken_port_is_named(view, port):
    with pytest.raises(DataError, match=f"port {port} cannot be used"):
        make_server(view, port)
