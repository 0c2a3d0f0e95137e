"""The probe asks a real server, and no answer but the goldens' own passes."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tasks.remote.host import probe
from tasks.shared.errors import Refused
from tasks.shared.vectors import pack

pytestmark = pytest.mark.integration
ROWS = [[1.0, 0.0], [0.6, 0.8]]


@pytest.fixture
def serve():
    """serve(text): a service that answers every POST with it -> the probe's settings for it."""
    servers = []

    def start(text: str, status: int = 200) -> dict:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return {"url": f"http://127.0.0.1:{server.server_port}/", "body": {"q": "{query}"}, "answer": "embedding"}

    yield start
    for server in servers:
        server.shutdown()


def goldens(queries=("one",)):
    return {"classes": {"cpu/float32": {"queries": list(queries), "vectors": {"query0": pack(ROWS)}}}}


def test_the_goldens_own_answer_passes(serve):
    assert probe.probe(serve(json.dumps({"embedding": ROWS})), goldens()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (json.dumps({"embedding": [[0.0, 1.0], [0.8, -0.6]]}), 200, "embeds otherwise"),
        ('{"embedding": [[NaN, NaN], [NaN, NaN]]}', 200, "not finite"),
        (json.dumps({"embedding": ROWS[:1]}), 200, "vectors of 1 x 2, the goldens' are of 2 x 2"),
        (json.dumps({"embedding": [[*row, 0.0] for row in ROWS]}), 200, "2 x 3"),
        (json.dumps({"embedding": [[1.0, 0.0], [0.6, 0.8, 0.0]]}), 200, "2 x 2 or 3"),
        (json.dumps({"embedding": [[10**400, 0], [0, 1]]}), 200, "does not embed"),
        ("[" * 100000, 200, "does not embed"),
        (json.dumps({"other": ROWS}), 200, "does not embed"),
        ("<html>", 200, "does not embed"),
        ("{}", 500, "does not embed"),
    ],
)
def test_no_other_answer_does(serve, answer, status, said):
    with pytest.raises(Refused, match=said):
        probe.probe(serve(answer, status), goldens())


def raw(*parts: bytes, pause: float = 0):
    """A port that answers one connection with these bytes -> the probe's settings for it."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer():
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            with contextlib.suppress(OSError):
                for part in parts:
                    connection.sendall(part)
                    time.sleep(pause)

    threading.Thread(target=answer, daemon=True).start()
    return {"url": f"http://127.0.0.1:{listening.getsockname()[1]}/", "body": {}, "answer": "embedding"}


HEAD = b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n"


@pytest.mark.parametrize("parts", [(HEAD, b"{"), (b"SSH-2.0-x\r\n",), (b"",)])
def test_what_is_no_whole_answer_of_http_is_refused(parts):
    with pytest.raises(Refused, match="does not embed"):
        probe.probe(raw(*parts), goldens())


@pytest.mark.parametrize("head", [HEAD, b"HTTP/1.0 200 OK\r\nX-Slow: "])
def test_a_service_that_drips_bytes_is_not_waited_for_for_ever(monkeypatch, head):
    monkeypatch.setattr(probe, "PATIENCE", 1)
    with pytest.raises(Refused, match="no whole answer within 1 s"):
        probe.probe(raw(head, *[b"."] * 100, pause=0.2), goldens())


def test_what_was_not_asked_was_not_embedded(serve):
    assert probe.probe(serve("{}", 500), goldens(queries=())) is None
    assert probe.probe(None, goldens()) is None
