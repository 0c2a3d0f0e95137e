"""A directory held against what it must be (layout.py): what is missing, what is extra, what is changed."""

from __future__ import annotations

import os

from tasks.remote.common.files import read_text


def differences(root, tree, wrong):
    """{path: "missing", "extra" or "changed"}; {} is as it must be. `wrong(path, sha256)` judges each blob's file."""
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
            good = not os.path.islink(full) and not wrong(full, tree.blobs[path])
        else:
            good = not os.path.islink(full) and read_text(full) == tree.texts[path]
        if not good:
            found[path] = "changed"
    return dict(sorted(found.items()))
