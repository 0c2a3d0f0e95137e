"""The report of a run as data: what reports/last.json holds. docs/report.md is made from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tasks.control.host_run import HostReport

FORMAT = 3


def said(doc: str) -> Any:
    return field(metadata={"doc": doc})


@dataclass
class Document:
    """A run that came as far as its hosts. None is "not known" or "not of this command"."""

    format: int = said("3; it changes with the meaning of a field")
    version: str = said("the version of hf-offline and its commit")
    command: str = said("the command line, without secrets")
    who: str = said("the operator, as `user@machine`")
    started: str = said("UTC, ISO 8601")
    ended: str = said("UTC, ISO 8601")
    seconds: float = said("seconds of the run")
    release: str | None = said("the release that the run is about")
    dry: bool = said("whether it was a dry run")
    verdict: str = said("`ok` or `failed`")
    hosts: dict[str, HostReport] = said("{host: its row}; see below")
    plan: list[list[str]] = said("the waves of a rollout: [[host]]")
    costs: dict[str, dict[str, int]] | None = said("{delivery: {image, model_change, code_change}} in bytes")
    lock_in_git: str | None = said("the release of the lock in git (tasks/status.py)")
    made_of: dict[str, Any] | None = said("{models: {repository: commit}, image, digest} of the release")
    retry: str | None = said("the command that goes on from here, after a failure")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def table() -> str:
    """The manual's tables of the report's fields."""
    rows = []
    for title, kind in (("The run", Document), ("A host", HostReport)):
        rows += ["", f"## {title}", "", "| field | what it is |", "|---|---|"]
        rows += [f"| `{each.name}` | {each.metadata['doc']} |" for each in fields(kind)]
    return "\n".join(rows[1:])
