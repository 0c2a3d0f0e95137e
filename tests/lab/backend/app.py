"""A small document search backend, as someone else might write it: it embeds queries with ColPali.

It stands for the operator's own application, so it knows nothing of the deployment around it: it names a model,
and the Hugging Face libraries find it. GET /health answers once the model is loaded; POST /embed embeds a query.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from colpali_engine.models import ColPali, ColPaliProcessor

MODEL_ID = os.environ.get("MODEL_ID", "docai/colpali-tiny")
DTYPE = os.environ.get("DTYPE", "bfloat16")
PORT = int(os.environ.get("PORT", "8000"))
MAX_BODY = 1 << 20

log = logging.getLogger("backend")


class Embedder:
    """One ColPali and its processor; a lock, since a forward on two threads only makes both slower."""

    def __init__(self) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.processor = ColPaliProcessor.from_pretrained(MODEL_ID)
        self.model = ColPali.from_pretrained(MODEL_ID, dtype=getattr(torch, DTYPE), device_map=self.device).eval()
        self.lock = threading.Lock()

    def query(self, text: str) -> list[list[float]]:
        """Return the query's embedding: one vector of 128 numbers a token."""
        batch = self.processor.process_queries([text]).to(self.device)
        with self.lock, torch.inference_mode():
            return self.model(**batch)[0].float().cpu().tolist()


class Handler(BaseHTTPRequestHandler):
    embedder: Embedder

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, {"status": "ok", "model": MODEL_ID})
        else:
            self.answer(404, {"error": f"no such page: {self.path}"})

    def do_POST(self) -> None:
        if self.path != "/embed":
            return self.answer(404, {"error": f"no such page: {self.path}"})
        try:
            length = int(self.headers.get("Content-Length", "0"))
            if not 0 < length <= MAX_BODY:
                return self.answer(413, {"error": f"a body of 1 to {MAX_BODY} bytes is expected"})
            query = json.loads(self.rfile.read(length))["query"]
            if not isinstance(query, str) or not query.strip():
                raise ValueError("query must be a text that is not empty")
        except (ValueError, KeyError, TypeError) as error:
            return self.answer(400, {"error": f'expected {{"query": "..."}}: {error}'})
        return self.answer(200, {"embedding": self.embedder.query(query), "model": MODEL_ID})

    def answer(self, status: int, document: dict) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        log.info("%s %s", self.address_string(), format % args)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    log.info("loading %s (%s)", MODEL_ID, DTYPE)
    Handler.embedder = Embedder()
    log.info("serving %s on port %d", MODEL_ID, PORT)
    ThreadingHTTPServer(("0.0.0.0", PORT), Handler).serve_forever()


if __name__ == "__main__":
    main()
