"""Resolves what the settings ask for: each repository to a commit, each of its files to a size and hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tasks.remote.bastion.retry import patiently
from tasks.remote.common.hub import Hub, download
from tasks.shared.errors import Refused
from tasks.shared.lock import File, Model
from tasks.shared.names import COMMIT, absent_names, base_of, check_config, check_paths, git_sha1, is_included

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class Resolved:
    """The models for a lock, sorted by repository; what was asked for, and the files of each that no release takes."""

    models: list[Model]
    asked: dict[str, str]
    left_out: dict[str, list[str]]


def resolve(store: str, hub: Hub, asked: Mapping[str, str]) -> Resolved:
    """Resolve {repository: revision}. An adapter brings its base, at the commit of `main` where nobody asks for another."""
    queue = dict(asked)
    models: dict[str, Model] = {}
    left_out = {}
    while queue:
        repo, revision = queue.popitem()
        models[repo], left_out[repo] = resolve_one(store, hub, repo, revision)
        base = models[repo].base
        if base and base not in queue and base not in models:
            queue[base] = "main"
    bases = {model.base for model in models.values()}
    found = [replace(model, role="base") if repo in bases else model for repo, model in sorted(models.items())]
    return Resolved(found, dict(asked), left_out)


def resolve_one(store: str, hub: Hub, repo: str, revision: str) -> tuple[Model, list[str]]:
    """One repository at a revision, and the files of it that no release takes, sorted."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.endpoint, token=hub.token or False)
    info = patiently(lambda: api.model_info(repo, revision=revision), hub, repo, revision)
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise Refused(repo, "got no commit from the Hub", "40 hex", repr(commit), "is the endpoint a Hub?")
    listing = patiently(lambda: list(api.list_repo_tree(repo, recursive=True, revision=commit)), hub, repo, commit)
    entries = {entry.path: entry for entry in listing if hasattr(entry, "blob_id")}  # folders have none
    names = included(repo, entries)
    files = {}
    adapter = None
    for name in names:
        files[name], data = file_of(store, hub, repo, commit, entries[name])
        if data is not None and name.endswith("config.json"):
            config = parse_config(f"{repo}: {name}", data)
            adapter = config if name == "adapter_config.json" else adapter
    base = base_of(f"{repo}: adapter_config.json", adapter) if adapter is not None else None
    role = "adapter" if base else "full"
    model = Model(repo, role, base, commit, files, tuple(absent_names(entries)))
    return model, sorted(set(entries) - set(names))


def included(repo: str, paths: Iterable[str]) -> list[str]:
    """The paths that a release takes, sorted. Raise Refused for an unsafe path, and without weights as safetensors."""
    ordered = check_paths(paths)
    names = [path for path in ordered if is_included(path)]
    if not any(name.endswith(".safetensors") for name in names):
        found = ", ".join([path for path in ordered if path.endswith(PICKLES)][:5]) or "none"
        raise Refused(repo, "has no weights as safetensors", "*.safetensors", found, "another repository")
    return names


def file_of(store: str, hub: Hub, repo: str, commit: str, entry: Any) -> tuple[File, bytes | None]:
    """A file of the Hub's listing with its hashes, and its content where it was downloaded.

    For a file in LFS the listing has the sha256. A small file is downloaded, since the listing has git's hash alone.
    """
    if entry.lfs:
        return File(entry.lfs.size, entry.lfs.sha256, entry.lfs.sha256), None
    path = patiently(lambda: download(hub, store, repo, commit, entry.path), hub, repo, commit)
    with open(path, "rb") as file:
        data = file.read()
    if git_sha1(data) != entry.blob_id or len(data) != entry.size:
        what = "is not what the Hub's listing says"
        raise Refused(f"{repo}: {entry.path}", what, entry.blob_id, git_sha1(data), "again")
    return File(len(data), hashlib.sha256(data).hexdigest(), entry.blob_id), data


def parse_config(where: str, data: bytes) -> Any:
    """A configuration of a model, as JSON. Raise Refused where it is none, and where it names code to import."""
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(where, "is not JSON", found=str(error)) from None
    check_config(where, config)
    return config
