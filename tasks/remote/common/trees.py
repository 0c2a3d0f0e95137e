"""A directory compared with what it must be (shared/layout.py): what is missing, extra or changed in it."""

from __future__ import annotations

import os
from collections.abc import Callable

from tasks.remote.common.files import read_text
from tasks.shared.layout import Tree


def differences(root: str, tree: Tree, is_wrong: Callable[[str, str], bool]) -> dict[str, str]:
    """{path: "missing", "extra" or "changed"} of the directory `root`, sorted; {} if it is as `tree` says.

    `is_wrong(path, sha256)` judges the file of each blob; path is absolute.
    """
    there = set()
    for folder, folders, files in os.walk(root):
        for name in files + [f for f in folders if os.path.islink(os.path.join(folder, f))]:
            there.add(os.path.relpath(os.path.join(folder, name), root))
    expected = {*tree.blobs, *tree.links, *tree.texts}
    found = {**dict.fromkeys(expected - there, "missing"), **dict.fromkeys(there - expected, "extra")}
    for path in expected & there:
        full = os.path.join(root, path)
        if path in tree.links:
            good = os.path.islink(full) and os.readlink(full) == tree.links[path]
        elif path in tree.blobs:
            good = not os.path.islink(full) and not is_wrong(full, tree.blobs[path])
        else:
            good = not os.path.islink(full) and read_text(full) == tree.texts[path]
        if not good:
            found[path] = "changed"
    return dict(sorted(found.items()))
