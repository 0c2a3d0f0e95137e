"""A small embedding backend without torch: a word's vector is made from its letters and the bytes of the model's weights.

Another model gives other vectors, so it can tell a wrong release from the right one. FAULT makes it a bad service:
`die:SECONDS` after it was healthy, `sick` (never healthy), `wrong` (embeds with other weights than those mounted).
`--embed` prints the embeddings of fixed queries, for a smoke test, and ends.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULT = os.environ.get("FAULT", "")
QUERIES = ["what was the total revenue per quarter", "invoice number and date"]


def weights() -> bytes:
    """sha256 of the weights in the Hugging Face cache, found as a client finds them: refs, then snapshots."""
    repo = Path(os.environ["HF_HOME"], "hub", "models--" + os.environ["MODEL_ID"].replace("/", "--"))
    commit = (repo / "refs/main").read_text()
    return hashlib.sha256((repo / "snapshots" / commit / "model.safetensors").read_bytes()).digest()


def embed(seed: bytes, text: str) -> list[list[float]]:
    """One vector of 128 numbers, of unit length, a word."""
    found = []
    for word in text.lower().split():
        raw = hashlib.shake_256(seed + word.encode()).digest(128)
        row = [byte / 127.5 - 1 for byte in raw]
        length = math.sqrt(sum(value * value for value in row))
        found.append([value / length for value in row])
    return found


class Handler(BaseHTTPRequestHandler):
    seed = b""

    def do_GET(self) -> None:
        self.answer(500 if FAULT == "sick" else 200, {"model": os.environ["MODEL_ID"]})

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["query"]
        self.answer(200, {"embedding": embed(self.seed, query), "weights": self.seed.hex()[:12]})

    def answer(self, status: int, document: dict) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def die(after: float) -> None:
    time.sleep(after)
    print("light: dying, as FAULT says", flush=True)
    os._exit(3)


def main() -> None:
    seed = weights()
    if "--embed" in sys.argv:
        print(json.dumps({"queries": QUERIES, "vectors": {f"query{i}": embed(seed, q) for i, q in enumerate(QUERIES)}}))
        return
    Path("/var/tmp/light.pid").write_text(str(os.getpid()))  # as many services do: it wants a writable root
    Handler.seed = b"other weights" if FAULT == "wrong" else seed
    if FAULT.startswith("die:"):
        threading.Thread(target=die, args=(float(FAULT[4:]),), daemon=True).start()
    ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()


if __name__ == "__main__":
    main()
