"""The intent of a switch: what state/pending says from the first step of a switch to its last."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.remote.common.files import read_text
from tasks.remote.host.records import Records
from tasks.remote.host.service import Place
from tasks.shared.errors import Refused


@dataclass(frozen=True)
class Intent:
    """What a switch is about, and what is needed to finish it or to undo it.

    before, target: release ids ("from" and "to" in the file); before is None where no release was current.
    previous: what the record of that name becomes. within: seconds that the service has to get healthy.
    container, status, was_running, was_healthy, had_container, had_override: the service before the switch.
    readmit: the operator's command, or None. confirmed: from then on the switch is finished, and never undone.
    """

    before: str | None
    target: str
    previous: str | None
    place: Place
    within: float
    had_container: bool
    had_override: bool
    was_running: bool
    was_healthy: bool
    container: str | None = None
    status: str | None = None
    readmit: str | None = None
    who: str | None = None
    why: str | None = None
    confirmed: bool = False

    def text(self) -> str:
        """The intent as it stands in state/pending."""
        document = dataclasses.asdict(self)
        place = document.pop("place")
        document |= {"from": document.pop("before"), "to": document.pop("target"), **place}
        if not self.confirmed:
            del document["confirmed"]
        return json.dumps(document)


def read_intent(records: Records) -> Intent | None:
    """The intent of the switch that is under way or was killed, or None. Raise Refused where it cannot be read."""
    text = read_text(records.pending)
    if text is None:
        return None
    try:
        return parse_intent(text)
    except (ValueError, LookupError, TypeError):
        fix = f"journal.jsonl beside it tells what was under way; rm {records.pending}, then deploy.py"
        raise Refused(records.pending, "is no record of a switch", "a JSON object", ascii(text[:80]), fix) from None


def parse_intent(text: str) -> Intent:
    """The intent in the text of state/pending. Raise ValueError, LookupError or TypeError where it is none."""
    found: dict[str, Any] = json.loads(text)
    place = Place(*(_text(found, key) for key in ("stack", "override", "project", "service")))
    return Intent(
        before=_text_or_none(found, "from"),
        target=_text(found, "to"),
        previous=_text_or_none(found, "previous"),
        place=place,
        within=float(found["within"]),
        had_container=bool(found["had_container"]),
        had_override=bool(found["had_override"]),
        was_running=bool(found["was_running"]),
        was_healthy=bool(found["was_healthy"]),
        container=found.get("container"),
        status=found.get("status"),
        readmit=found.get("readmit"),
        who=found.get("who"),
        why=found.get("why"),
        confirmed=bool(found.get("confirmed")),
    )


def _text(found: Mapping[str, Any], key: str) -> str:
    value = found[key]
    if not isinstance(value, str):
        raise TypeError(key)
    return value


def _text_or_none(found: Mapping[str, Any], key: str) -> str | None:
    return None if found[key] is None else _text(found, key)
