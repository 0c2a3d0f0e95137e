"""How blobs get from the bastion to a host. A transport is one module here, and one line in `choose`.

Nobody trusts what it sends: the host hashes every byte afterwards (`store admit`).
"""

from __future__ import annotations

from tasks.control.settings import Settings
from tasks.control.transports.protocol import Transport
from tasks.control.transports.rsync import Rsync


def choose(settings: Settings) -> Transport:
    """The transport of a rollout, by its settings."""
    return Rsync(settings.push_parallel)
