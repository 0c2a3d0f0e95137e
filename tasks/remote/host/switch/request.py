"""What the control machine asks of the program `switch`: its options and its standard input."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.remote.host.container import Identity
from tasks.remote.host.service import Place
from tasks.shared.signatures import SIGNERS


@dataclass(frozen=True)
class Request:
    """One switch to a release, asked for or only checked.

    within, soak, confirm: seconds to get healthy, to be watched, and to be confirmed over a new connection.
    recreate: the container is recreated in any case. previous: what the record of that name becomes; "" is the release
    that is left. lease: the id of the rollout's lease; "" is none. expect_env: what the service's process must have in its
    environment. drain, readmit: the operator's commands. probe: their setting of that name.
    """

    store: str
    release: str
    place: Place
    signers: str = SIGNERS
    within: float = 600
    soak: float = 0
    confirm: float = 60
    recreate: bool = False
    previous: str = ""
    lease: str = ""
    who: str | None = None
    why: str | None = None
    probe: Mapping[str, Any] | None = None
    expect_env: Mapping[str, str] | None = None
    drain: str | None = None
    readmit: str | None = None

    @property
    def override(self) -> str:
        """The release's override, as its smoke test passed with it."""
        return os.path.join(self.store, "state", self.release, "compose.override.yaml")


@dataclass(frozen=True)
class Recheck:
    """Asks whether the container that was confirmed serves still."""

    store: str
    release: str
    place: Place
    confirmed: Identity
    expect_env: Mapping[str, str]
