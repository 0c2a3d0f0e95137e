"""What a smoke test tells: its checks, and what it measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

LONGEST = 400  # characters of a check's detail


@dataclass(frozen=True)
class Check:
    """One thing that must be so. detail: what was found, for the reader of a failure."""

    name: str
    ok: bool
    detail: str


class Checks:
    """The checks of one smoke test, in order."""

    def __init__(self) -> None:
        self.all: list[Check] = []

    def add(self, name: str, ok: object, detail: object = "") -> None:
        """Note a check. `ok` counts by its truth."""
        self.all.append(Check(name, bool(ok), str(detail)[:LONGEST]))

    def passed(self) -> bool:
        """Whether every check is fine."""
        return all(check.ok for check in self.all)

    def as_json(self) -> list[dict[str, Any]]:
        """The checks as JSON values."""
        return [asdict(check) for check in self.all]


@dataclass(frozen=True)
class Comparison:
    """Cosines of the vectors with the goldens of the class `against`: their mean, first percentile and minimum."""

    against: str
    mean: float
    p1: float
    min: float

    def as_json(self) -> dict[str, Any]:
        """The comparison as the fields "cosine" and "against" of the answer."""
        return {"cosine": {"mean": self.mean, "p1": self.p1, "min": self.min}, "against": self.against}


@dataclass(frozen=True)
class Embeddings:
    """Our vectors in the goldens' format: of which class ("cuda/bfloat16"), of which inputs, and {name: packed vectors}."""

    device_class: str
    queries: list[str]
    inputs_sha256: str
    vectors: dict[str, dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """The embeddings as the field "embeddings" of the answer, and as they stand among the goldens."""
        found = {"class": self.device_class, "queries": self.queries, "inputs_sha256": self.inputs_sha256}
        return {**found, "vectors": self.vectors}


@dataclass(frozen=True)
class Measured:
    """What a smoke test measured. `more`: fields of one kind of model alone; smoke.py lists them."""

    device: str
    dtype: str
    load_seconds: float
    latency_ms: dict[str, float]
    embeddings: Embeddings | None = None
    comparison: Comparison | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The fields of the answer beside "ok" and "checks"."""
        return {
            "device": self.device,
            "dtype": self.dtype,
            "load_seconds": round(self.load_seconds, 3),
            "latency_ms": {kind: round(value, 2) for kind, value in self.latency_ms.items()},
            "embeddings": self.embeddings.as_json() if self.embeddings else None,
            **(self.comparison.as_json() if self.comparison else {"cosine": None, "against": None}),
            **self.more,
        }
