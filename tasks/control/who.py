"""Who runs this, and from where: in reports, leases and the hosts' journals."""

from __future__ import annotations

import getpass
import os


def who() -> str:
    """`user@machine`. Behind sudo it is the person, not root."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a uid without an account, as in some containers
        user = f"uid {os.getuid()}"
    return f"{user}@{os.uname().nodename}"
