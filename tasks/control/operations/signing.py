"""The operator's signatures on their way to the machines that check them."""

from __future__ import annotations

import json
from typing import Any

from tasks.control import lockfile as locks
from tasks.control import ssh as fleet
from tasks.control.reporting import recorder as report
from tasks.control.settings import Settings
from tasks.control.tool import call, expect
from tasks.shared.lock import Lock


def bring(target: Any, settings: Settings, lock: Lock) -> None:
    """Lock and goldens with their signatures, before any byte moves; Refused by a host that asks for better ones."""
    document = json.dumps(locks.signed(settings, lock))
    expect(call(target, "signed", "keep", document=document, release=lock.id, deadline=300))


def asked_for() -> bool:
    """Whether the operator, or any machine of this run, asks for signatures."""
    known = [report.RESULTS.get(each.name, {}) for each in [fleet.bastion(), *fleet.targets()]]
    return any(each["settings"].sign or (each.get("seen") or {}).get("signers") for each in known)
