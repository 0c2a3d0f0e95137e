"""A small document search backend, as someone else might write it: it embeds queries with ColPali or one of its kind.

It stands for the operator's own application, so it knows nothing of the deployment around it: it names a model and its
class in colpali-engine, and the Hugging Face libraries find it. GET /health answers once the model is loaded; POST /embed embeds a query.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import colpali_engine.models
import torch
from transformers import AutoImageProcessor

MODEL_ID = os.environ.get("MODEL_ID", "docai/colpali-tiny")
MODEL_CLASS = os.environ.get("MODEL_CLASS", "ColPali")
PROCESSOR_CLASS = os.environ.get("PROCESSOR_CLASS", f"{MODEL_CLASS}Processor")
IMAGE_PROCESSOR = os.environ.get("IMAGE_PROCESSOR")  # torchvision or pil; by default the library chooses
DTYPE = os.environ.get("DTYPE", "bfloat16")
PORT = int(os.environ.get("PORT", "8000"))
MAX_BODY = 1 << 20

log = logging.getLogger("backend")


class Embedder:
    """One model and its processor; a lock, since a forward on two threads only makes both slower."""

    def __init__(self) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model, processor = (getattr(colpali_engine.models, name) for name in (MODEL_CLASS, PROCESSOR_CLASS))
        self.processor = processor.from_pretrained(MODEL_ID)
        if IMAGE_PROCESSOR:
            self.processor.image_processor = AutoImageProcessor.from_pretrained(MODEL_ID, backend=IMAGE_PROCESSOR)
        self.model = model.from_pretrained(MODEL_ID, dtype=getattr(torch, DTYPE), device_map=self.device).eval()
        self.lock = threading.Lock()

    def image_processor(self) -> str:
        return type(self.processor.image_processor).__name__

    def query(self, text: str) -> list[list[float]]:
        """Return the query's embedding: one vector of 128 numbers a token."""
        batch = self.processor.process_queries([text]).to(self.device)
        with self.lock, torch.inference_mode():
            return self.model(**batch)[0].float().cpu().tolist()


class Handler(BaseHTTPRequestHandler):
    embedder: Embedder

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, {"status": "ok", "model": MODEL_ID, "image_processor": self.embedder.image_processor()})
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
