"""A stand-in for the Hugging Face Hub: enough of its API for the unmodified huggingface_hub client, and its faults.

    python3 hub.py --root DIR [--port 443 --cert F --key F] [--cdn-port 8443]

Small files come from the Hub itself, LFS files by a redirect to a second origin (another port), where an Authorization
header is an error. Tests talk to /_lab/: POST fault {mode: value, …} (one dict replaces the other), POST refs {repo: {ref: sha}},
GET log, POST reset. Endpoints and headers: huggingface_hub 2.4 (hf_api.py, file_download.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import socket
import ssl
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).parent))
from hub_repo import is_lfs, move

# The faults, off at first. drop: bytes after which a download breaks ("fin" or "rst" by drop_by), busy: {count, status,
# after} for answers of the CDN, corrupt/truncate: a path whose bytes are wrong, stall: seconds before each chunk,
# xet: {cas, hashes} to offer files by Xet.
FAULTS: dict = {}
LOG: list[dict] = []
LOCK = threading.Lock()


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    cdn_port: int
    scheme = "http"

    def log_message(self, *_: object) -> None:
        """The request log is GET /_lab/log."""

    # ------------------------------------------------------------------------------------------------- plumbing

    def answer(self, status: int, body: bytes | dict | list = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", headers.get("Content_Type", "application/json"))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def no(self, status: int, code: str, message: str, **headers: str) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message, **headers)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.path.startswith("/_lab/"):
            return self.answer(404, {"error": "not here"})
        asked = json.loads(body or b"{}")
        with LOCK:
            if self.path == "/_lab/reset":
                FAULTS.clear()
                LOG.clear()
            elif self.path == "/_lab/fault":
                FAULTS.clear()
                FAULTS.update(asked)
            elif self.path == "/_lab/refs":
                for repo, refs in asked.items():
                    move(self.root, repo, refs)
        self.answer(200, {"faults": FAULTS})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/_lab/log":
            return self.answer(200, LOG)
        cdn = self.server.server_address[1] == self.cdn_port
        entry = {"method": self.command, "path": path, "cdn": cdn, "authorization": "Authorization" in self.headers}
        LOG.append(entry | {"range": self.headers.get("Range")})
        if FAULTS.get("portal"):
            return self.answer(200, b"<html>Please log in to the network</html>", Content_Type="text/html")
        if cdn:
            return self.cdn(path)
        parts = path.strip("/").split("/")
        if parts[:1] == ["api"]:
            return self.api(parts[1:])
        if len(parts) >= 5 and parts[2] == "resolve":
            return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        self.answer(404, {"error": "not here"})

    # ---------------------------------------------------------------------------------------------------- the API

    def api(self, parts: list[str]) -> None:
        if parts == ["whoami-v2"]:
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if not token.startswith("hf_good"):
                return self.no(401, "", "Invalid credentials in Authorization header")
            return self.answer(200, {"type": "user", "name": "lab-account", "fullname": "Lab", "orgs": []})
        if parts[:1] != ["models"] or len(parts) < 3:
            return self.answer(404, {"error": "not here"})
        repo, rest = "/".join(parts[1:3]), parts[3:]
        if self.status_fault("api") or not self.may(repo, files=False):
            return None
        revision = rest[1] if len(rest) > 1 else "main"
        sha = self.sha(repo, revision)
        if sha is None:
            return self.no(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = self.files(repo, sha)
        if rest[:1] == ["tree"]:
            return self.answer(200, [self.entry(name, file) for name, file in files])
        if rest[:1] == ["xet-read-token"]:
            token = {"X_Xet_Cas_Url": FAULTS["xet"]["cas"], "X_Xet_Access_Token": "lab"}
            return self.answer(200, b"{}", X_Xet_Token_Expiration=str(int(time.time()) + 3600), **token)
        siblings = [{"rfilename": name} for name, _ in files]
        gated = "manual" if self.settings(repo).get("gated") else False
        about = {"_id": sha, "id": repo, "modelId": repo, "sha": sha, "private": False, "gated": gated, "tags": []}
        return self.answer(200, about | {"disabled": False, "downloads": 0, "likes": 0, "siblings": siblings})

    def entry(self, name: str, file: Path) -> dict:
        data = file.read_bytes()
        found = {
            "type": "file",
            "path": name,
            "size": len(data),
            "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
        }
        if is_lfs(name, len(data)):
            sha = hashlib.sha256(data).hexdigest()
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {len(data)}\n".encode()
            found["oid"] = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
            found["lfs"] = {"oid": sha, "size": len(data), "pointerSize": len(pointer)}
        return found

    def settings(self, repo: str) -> dict:
        path = self.root / repo / "settings.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def sha(self, repo: str, revision: str) -> str | None:
        if (self.root / repo / "commits" / revision).is_dir():
            return revision if revision not in FAULTS.get("deleted", []) else None
        return json.loads((self.root / repo / "refs.json").read_text()).get(revision)

    def files(self, repo: str, sha: str) -> list[tuple[str, Path]]:
        top = self.root / repo / "commits" / sha
        found = sorted((str(path.relative_to(top)), path) for path in top.rglob("*") if path.is_file())
        return found + [(name, found[0][1]) for name in FAULTS.get("names", [])]

    def may(self, repo: str, files: bool) -> bool:
        """Answer 401, 403 or 404 as the Hub does, and say False; or True."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        settings = self.settings(repo)
        if token and not token.startswith("hf_good"):
            self.no(401, "", "Invalid credentials in Authorization header")
        elif not (self.root / repo / "refs.json").exists() or (settings.get("private") and not token):
            self.no(404 if token else 401, "RepoNotFound", "Repository not found")
        elif files and settings.get("gated") and not token:
            self.no(401, "GatedRepo", f"Access to model {repo} is restricted. You must be authenticated to access it.")
        elif files and settings.get("gated") and token != "hf_good_member":
            self.no(403, "GatedRepo", f"Access to model {repo} is restricted and you are not in the authorized list.")
        else:
            return True
        return False

    def status_fault(self, where: str) -> bool:
        """The next `count` answers of `where` ("api" or "cdn") have a bad status."""
        busy = FAULTS.get("busy") or {}
        if busy.get("where", "cdn") != where or busy.get("count", 0) <= 0:
            return False
        busy["count"] -= 1
        self.no(busy["status"], "", "busy", **({"Retry_After": str(busy["after"])} if "after" in busy else {}))
        return True

    # -------------------------------------------------------------------------------------------------- the files

    def resolve(self, repo: str, revision: str, name: str) -> None:
        if not self.may(repo, files=True):
            return None
        sha = self.sha(repo, revision)
        if sha is None:
            return self.no(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        file = self.root / repo / "commits" / sha / name
        if not file.is_file():
            return self.no(404, "EntryNotFound", "Entry not found", X_Repo_Commit=sha)
        entry = self.entry(name, file)
        if "lfs" not in entry:
            return self.send(file, name, X_Repo_Commit=sha, ETag=f'"{entry["oid"]}"')
        linked = {
            "X_Linked_Size": str(entry["size"]),
            "X_Linked_Etag": f'"{entry["lfs"]["oid"]}"',
            "X_Repo_Commit": sha,
        }
        host = (self.headers.get("Host") or "localhost").partition(":")[0]
        where = f"{self.scheme}://{host}:{self.cdn_port}/{repo}/{sha}/{name}"
        xet = FAULTS.get("xet") or {"hashes": {}}
        if name in xet["hashes"]:
            link = f'<{self.scheme}://{self.headers["Host"]}/api/models/{repo}/xet-read-token/{sha}>; rel="xet-auth"'
            linked |= {"X_Xet_Hash": xet["hashes"][name], "Link": link}
        return self.answer(302, b"", Location=where, ETag=f'"{entry["oid"]}"', **linked)

    def cdn(self, path: str) -> None:
        if "Authorization" in self.headers:
            return self.no(400, "", "the token reached the CDN")
        if self.status_fault("cdn"):
            return None
        owner, name, sha, *rest = path.strip("/").split("/")
        file = self.root / owner / name / "commits" / sha / "/".join(rest)
        return self.send(file, "/".join(rest)) if file.is_file() else self.answer(404, {"error": "not here"})

    def send(self, file: Path, name: str, **headers: str) -> None:
        data = file.read_bytes()
        if FAULTS.get("corrupt") == name:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if FAULTS.get("truncate") == name:
            data = data[: len(data) // 2]
        start, status = 0, 200
        if (self.headers.get("Range") or "").startswith("bytes="):
            first, _, last = self.headers["Range"][6:].partition("-")
            start, status = int(first or 0), 206
            if start >= len(data):
                return self.answer(416, b"", Content_Range=f"bytes */{len(data)}")
            data, total = data[start : int(last) + 1 if last else None], len(data)
            headers["Content_Range"] = f"bytes {start}-{start + len(data) - 1}/{total}"
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        return self.pour(data)

    def pour(self, data: bytes) -> None:
        drop = FAULTS.get("drop") if FAULTS.get("drops", 1) > 0 else None
        for at in range(0, len(data), 1 << 16):
            if FAULTS.get("stall"):
                time.sleep(FAULTS["stall"])
            if drop is not None and at + (1 << 16) > drop:
                FAULTS["drops"] = FAULTS.get("drops", 1) - 1
                self.wfile.write(data[at:drop])
                self.wfile.flush()
                if FAULTS.get("drop_by") == "rst":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(data[at : at + (1 << 16)])


def serve(
    root: Path, port: int, cdn_port: int, cert: str = "", key: str = "", bind: str = "0.0.0.0"
) -> list[ThreadingHTTPServer]:
    """Start both origins in threads; -> [hub, cdn]. Port 0 takes a free one."""
    handler = type("Handler", (Hub,), {"root": Path(root), "scheme": "https" if cert else "http"})
    servers = []
    for number in (port, cdn_port):
        server = ThreadingHTTPServer((bind, number), handler)
        server.daemon_threads = True
        if cert:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(cert, key)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.cdn_port = servers[1].server_address[1]
    return servers


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=443)
    parser.add_argument("--cdn-port", type=int, default=8443)
    parser.add_argument("--cert", default="")
    parser.add_argument("--key", default="")
    args = parser.parse_args()
    serve(args.root, args.port, args.cdn_port, args.cert, args.key)
    threading.Event().wait()
