"""Repositories of the stand-in Hub as files: `<root>/<owner>/<name>/{refs.json,settings.json,commits/<sha>/…}`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path


def commit(root: Path, repo: str, files: Mapping[str, bytes], refs: list[str]) -> str:
    """Write a commit whose name is made from its files alone, point `refs` at it, and return its 40 hex."""
    sha = hashlib.sha1()
    for name in sorted(files):
        sha.update(f"{name}\0{hashlib.sha256(files[name]).hexdigest()}\n".encode())
    top = Path(root) / repo
    for name, content in files.items():
        path = top / "commits" / sha.hexdigest() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    move(root, repo, {ref: sha.hexdigest() for ref in refs})
    return sha.hexdigest()


def move(root: Path, repo: str, refs: Mapping[str, str]) -> None:
    """Point branches and tags at commits: what makes an upstream "move"."""
    path = Path(root) / repo / "refs.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **refs}, indent=1))


def is_lfs(path: str, size: int) -> bool:
    """What huggingface.co's .gitattributes put into LFS."""
    return path.endswith((".safetensors", ".bin", ".pt", "tokenizer.json")) or size > 10 << 20
