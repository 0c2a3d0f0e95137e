"""Names that come from a Hub: which are safe as file names, which files a release takes, which code it refuses."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from tasks.shared.errors import Refused

SHA256 = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
IMAGE = re.compile(r"[a-z0-9][a-z0-9._/:-]{0,200}")

# Weights as safetensors, and plain data. A pickle or a .py file is code, and would run on a GPU host.
INCLUDED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
# In fnmatch, `*` also matches `/`. So leftovers of a training are named by their folder.
EXCLUDED = ("checkpoint-*/*", "results*.json", "trainer_state.json", "training_args.json", "runs/*", ".*")
# Files that transformers and colpali-engine ask for, and do without when the cache says that the Hub has none.
OPTIONAL_NAMES = (
    "adapter_config.json",
    "added_tokens.json",
    "audio_tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)
MAX_NAME_BYTES = 255  # what Linux filesystems take


def check_path(path: str) -> str:
    """Return `path` if it is safe as a file name below a directory of ours. Raise Refused, with the name escaped, if not."""
    parts = path.split("/") if isinstance(path, str) else []
    unsafe = (
        not parts
        or len(path.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES
        or any(part in ("", ".", "..") or part.startswith("-") for part in parts)
        or any(not c.isprintable() or c == "\\" for c in path)
        or unicodedata.normalize("NFC", path) != path
    )
    if unsafe:
        raise Refused(ascii(path), "is no safe file name", "a relative path without .., -, control or odd characters")
    return path


def check_paths(paths: Iterable[str]) -> list[str]:
    """Return the paths, sorted, if each is safe and no two clash. Raise Refused if not.

    Two paths clash where they differ in upper and lower case alone, or where one is a file and the other's folder.
    """
    seen: dict[str, str] = {}
    ordered = sorted(check_path(path) for path in paths)
    for path in ordered:
        twin = seen.setdefault(path.casefold(), path)
        if twin != path:
            raise Refused(ascii(path), "clashes with another file of the repository", "one spelling", ascii(twin))
    for path in ordered:
        parent = path.rpartition("/")[0]
        while parent:
            if parent.casefold() in seen:
                raise Refused(ascii(path), "lies below a name that is also a file", "a folder", ascii(parent))
            parent = parent.rpartition("/")[0]
    return ordered


def is_included(path: str) -> bool:
    """Whether a release takes this file of a repository: weights as safetensors, configuration, tokenizer; no code."""
    return any(fnmatchcase(path, p) for p in INCLUDED) and not any(fnmatchcase(path, p) for p in EXCLUDED)


def absent_names(paths: Iterable[str]) -> list[str]:
    """The optional names that a repository with these files lacks. Each becomes a marker in the cache.

    Without its marker, a client that loads by name offline asks the network for the file, and fails.
    """
    return sorted(set(OPTIONAL_NAMES) - set(paths))


def check_config(where: str, config: Any) -> None:
    """Raise Refused where a configuration names code to import (`auto_map`): it would run on every GPU host."""
    if isinstance(config, Mapping) and config.get("auto_map"):
        raise Refused(where, "names Python code to import (auto_map)", "a model that transformers knows", "auto_map")


def base_of(where: str, adapter_config: Mapping[str, Any]) -> str:
    """The repository of the base model that an adapter_config.json names. Raise Refused for a local path."""
    base = adapter_config.get("base_model_name_or_path")
    if not isinstance(base, str) or not REPO.fullmatch(base):
        raise Refused(where, "base_model_name_or_path names no Hub repository", "owner/name", ascii(base))
    return base


def git_sha1(data: bytes) -> str:
    """The Hub's etag of a small file: git's object id of it, 40 hex digits."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
