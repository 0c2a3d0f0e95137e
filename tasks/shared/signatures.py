"""Who may sign a release, and the command that signs it."""

from __future__ import annotations

import stat
from collections.abc import Iterable

# The list of allowed signers, in ssh-keygen's format. It is not a setting: whoever could change the path could point it
# at an empty list.
SIGNERS = "/etc/hf-offline/allowed_signers"
NAMESPACE = "hf-offline"


def sign_command(*paths: str) -> str:
    """The shell command that signs these files. It writes PATH.sig beside each."""
    return f"ssh-keygen -Y sign -n {NAMESPACE} -f KEY {' '.join(paths)}"


def writable_by_others(parts: Iterable[tuple[str, int, int]]) -> str:
    """The first path that somebody else than root can change, as "PATH of uid N, MODE"; "" where there is none.

    `parts`: (path, owner's uid, mode) of a file, and then of each directory above it. A sticky directory such as /tmp is
    safe: nobody but root renames root's files in it.
    """
    for number, (path, owner, mode) in enumerate(parts):
        right_kind = stat.S_ISDIR(mode) if number else stat.S_ISREG(mode)
        sticky = number > 0 and bool(mode & stat.S_ISVTX)
        if not right_kind or owner != 0 or (mode & 0o022 and not sticky):
            return f"{path} of uid {owner}, {stat.filemode(mode)}"
    return ""
