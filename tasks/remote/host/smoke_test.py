"""The smoke test of a release: embed offline in a container of its own, and keep what it was tested with once it passes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from tasks.remote.common.files import hold_lock, read_text, remove, utc_now, write_file
from tasks.remote.host import signed
from tasks.remote.host.one_off import OneOff, run_once
from tasks.remote.host.records import VERDICT, Records
from tasks.shared.errors import Refused
from tasks.shared.stack import CANDIDATE, SMOKE


def candidate(store: str, release_id: str, texts: Mapping[str, str], within: float = 60.0) -> dict[str, Any]:
    """Write the files that the next smoke test takes, {name: text}. Remove what an earlier one left, but not the signatures.

    Wait `within` seconds for a test of this release that runs. Return {"folder": where the files lie}.
    """
    folder = Records(store).candidate(release_id)
    os.makedirs(folder, exist_ok=True)
    with hold_smoke_lock(store, release_id, within):
        os.makedirs(folder, exist_ok=True)  # a test that has passed in between has removed it
        for name in set(os.listdir(folder)) - {signed.SIGNED}:
            remove(os.path.join(folder, name))
        for name, text in texts.items():
            write_file(os.path.join(folder, name), text)
    return {"folder": folder}


def hold_smoke_lock(store: str, release_id: str, within: float = 60.0) -> AbstractContextManager[None]:
    """One smoke test of a release at a time. So one that outlives its controller passes with its own files, or not at all."""
    path = os.path.join(store, "state", release_id, ".smoke.lock")
    return hold_lock(path, "is being smoke-tested", within)


def smoke(store: str, where: OneOff) -> dict[str, Any]:
    """Run the Compose service `smoke` once. Return its answer, which is also kept with the candidate.

    When the test passes, the candidate's files become the release's own. When it does not, those stay as they are.
    """
    records = Records(store)
    with hold_smoke_lock(store, where.release):
        folder = records.candidate(where.release)
        answer, code = run_once(where, SMOKE, "smoke test", "setting smoke_deadline", env={CANDIDATE: folder})
        answer |= {"at": utc_now(), "ok": bool(answer.get("ok")) and code == 0}
        keep_result(folder, answer)
        if not answer["ok"]:
            return {"ok": False, "error": failure(answer), "checks": answer.get("checks")}
        records.pass_candidate(where.release)
        return answer


def keep_result(folder: str, answer: Mapping[str, Any]) -> None:
    """Write the result of a test, and its embeddings, beside what it was tested with. The verdict comes last."""
    if answer.get("embeddings"):
        write_file(os.path.join(folder, "embeddings.json"), json.dumps(answer["embeddings"], sort_keys=True))
    verdict = {key: value for key, value in answer.items() if key != "embeddings"}
    write_file(os.path.join(folder, VERDICT), json.dumps(verdict, sort_keys=True))


def failure(answer: Mapping[str, Any]) -> Mapping[str, str]:
    """Why a test does not pass, as the words of a Refused: its own, or the checks that fail."""
    failing = [f"{check['name']}: {check['detail']}" for check in answer.get("checks", []) if not check["ok"]]
    own: Mapping[str, str] | None = answer.get("error")
    return own or {"where": "smoke test", "what": "says no", "found": "; ".join(failing)[:900]}


def embeddings(store: str, release_id: str) -> dict[str, Any]:
    """{"embeddings": those of the last smoke test}, also where it did not pass: the operator may accept them as goldens."""
    path = os.path.join(store, "state", release_id, "embeddings.json")
    newest = os.path.join(Records(store).candidate(release_id), "embeddings.json")
    text = read_text(newest) or read_text(path)
    if text is None:
        raise Refused(path, "does not exist", "embeddings of a smoke test", "no file", "deploy.py, until it stops")
    return {"embeddings": json.loads(text)}
