"""Checks the mounted cache by itself, before any library reads it: their errors do not say what is missing."""

from __future__ import annotations

import os

from tasks.shared.layout import Tree, cache_tree
from tasks.shared.lock import Lock


def faults(root: str, lock: Lock) -> list[str]:
    """What is wrong with the cache in `root`: missing files, refs and markers, links that leave it; [] is whole."""
    tree = cache_tree(lock)
    sizes = link_sizes(lock)
    found = [fault(root, path, tree, sizes) for path in sorted({*tree.links, *tree.texts})]
    return [each for each in found if each]


def fault(root: str, path: str, tree: Tree, sizes: dict[str, int]) -> str:
    """What is wrong with one file of the cache, or ""."""
    full = os.path.join(root, path)
    if not os.path.exists(full):
        return f"{path} {'dangles' if os.path.islink(full) else 'is missing'}"
    if not os.path.realpath(full).startswith(os.path.realpath(root) + os.sep):
        return f"{path} leads out of the release, to {os.path.realpath(full)}"
    if path.endswith("refs/main"):
        with open(full, encoding="ascii", newline="") as file:
            return "" if file.read() == tree.texts[path] else f"{path} names another commit than the lock"
    if path in sizes and os.path.getsize(full) != sizes[path]:
        return f"{path} has {os.path.getsize(full)} bytes, not {sizes[path]}"
    return ""


def link_sizes(lock: Lock) -> dict[str, int]:
    """{path of a link in the cache: bytes of the file that it leads to}."""
    return {
        f"hub/{model.folder}/snapshots/{model.commit}/{name}": file.size
        for model in lock.models
        for name, file in model.files.items()
    }
