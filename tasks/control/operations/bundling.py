"""A release onto a drive, where no wire crosses the gap, and the far side's note of what need not travel again."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pyinfra import host, logger
from pyinfra.api import QuoteString, StringCommand, operation

from tasks.control import lockfile as locks
from tasks.control import preflight as fitness
from tasks.control import ssh as fleet
from tasks.control.operations.fetching import ensure_venv, set_up_bastion, venv
from tasks.control.preflight import size
from tasks.control.reporting import recorder as report
from tasks.control.settings import Settings, in_bytes
from tasks.control.tool import ROOT, call, expect, fail, guarded, put
from tasks.shared.blobs import missing_blobs
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock, lock_text
from tasks.shared.names import SHA256

HAVE = report.FOLDER / "have.json"
WHEELS = 100_000_000  # bytes set aside before pip has said how many they are: 63 MB for Python 3.10 and 3.11
README = """\
Release {release} of {model}, for hosts without a network. On the far control machine (Python {python}, Linux as the bastion's), in this directory:
1. sha256sum SHA256SUMS: compare with what the sender tells you by another way (telephone, ticket), and unpack nothing before that; then sha256sum -c --quiet SHA256SUMS
2. tar xf tool.tar.gz -C ~ (over an older hf-offline/, if there is one); mkdir -p ~/hf-offline/group_data/locks && {copy}
3. python3 -m venv ~/hf-offline/.venv && ~/hf-offline/.venv/bin/pip install --no-index --find-links wheels -r ~/hf-offline/requirements.txt
4. This directory to the far bastion (a mounted drive, or a copy); in group_data there: source = "bundle", bundle = "/its/path".
5. In ~/hf-offline, with .venv activated: pyinfra -y INVENTORY deploy.py ; then tasks/have.py, and reports/have.json back to the sender.
"""


def read_have(path: str) -> tuple[dict[str, int], str | None]:
    """({sha256: size}, when) of the far side's have.json; ({}, None) without one. What is unclear is refused."""
    if not path:
        return {}, None
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        found = document["blobs"]
        fine = document["format"] == 1 and all(SHA256.fullmatch(n) and type(count) is int for n, count in found.items())
        when = str(document["at"])
    except OSError as error:
        raise Refused(path, "cannot be read", found=str(error.strerror), next="--data have=PATH") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fine, found, when = False, repr(error), ""
    if not fine:
        raise Refused(path, "is no have.json of format 1", next="tasks/have.py on the far side")
    return found, when


@cache
def archive() -> bytes:
    """The repository at HEAD as hf-offline/ in a tar.gz: what is not committed does not travel."""
    words = ["git", "archive", "--format=tar", "--prefix=hf-offline/", "HEAD"]
    done = subprocess.run(words, cwd=ROOT.parent, capture_output=True)
    if done.returncode:
        found = done.stderr.decode("utf-8", "replace").strip()
        raise Refused(str(ROOT.parent), "gives no archive of the tool", "a git clone", found, "git status")
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT.parent, capture_output=True, text=True)
    if changed.stdout.strip():
        logger.warning(
            f"    tool.tar.gz is the last commit; {len(changed.stdout.splitlines())} changes since stay here"
        )
    return gzip.compress(done.stdout, mtime=0)


def extra(lock: Lock, goldens: Any) -> dict[str, int]:
    """What travels beside the blobs, before it is all there: {name: size in bytes}."""
    texts = {
        "lock.json": len(lock_text(lock.document)),
        "goldens.json": len(goldens.text(lock)) if goldens.has(lock) else 0,
    }
    return {**texts, "tool.tar.gz": len(archive()), "wheels": WHEELS}


def texts(lock: Lock, settings: Settings, goldens: Any) -> dict[str, str]:
    """The small files of the bundle."""
    found = {"lock.json": lock_text(lock.document)}
    copy = f"cp lock.json ~/hf-offline/{locks.lock_path(settings)}"
    if goldens.has(lock):
        found["goldens.json"] = goldens.text(lock)
        copy += f" && cp goldens.json ~/hf-offline/{goldens.path}"
    for name, entry in locks.signed(settings, lock).items():
        if entry and entry["signature"]:
            found[f"{name}.json.sig"] = entry["signature"]
            copy += f" && cp {name}.json.sig ~/hf-offline/{entry['path']}.sig"
    words = {"release": lock.id, "model": lock.served.repo, "python": settings.bundle_python, "copy": copy}
    return {**found, "README.txt": README.format(**words)}


def wheels(target: Any, settings: Settings) -> dict[str, str]:
    """{name in the bundle: path on the bastion} of the packages of the far control machine, downloaded once."""
    text = (ROOT.parent / "requirements.txt").read_text(encoding="utf-8")
    ensure_venv(target, settings)
    mark = hashlib.sha256(f"{settings.bundle_python}\n{text}".encode()).hexdigest()[:12]
    into = f"{settings.model_store}/wheels-{mark}"
    more: dict[str, Any] = {"into": into, "for_python": settings.bundle_python, "within": 900, "deadline": 2000}
    got = expect(call(target, "wheels", "get", document=text, python=f"{venv(settings)}/bin/python", **more))
    return {f"wheels/{name}": f"{into}/{name}" for name in got["files"]}


@operation(is_idempotent=True)
def bundle(lock: Lock, settings: Settings, goldens: Any, have: Mapping[str, int], have_at: str | None):
    """Lock, goldens, tool, its wheels and the blobs that the far side lacks, onto the drive, and read back from it."""
    if report.RESULTS[host.name]["state"] == "unfit":
        host.noop("unfit")
        return
    carried = missing_blobs(lock.blobs(), have)
    report.record(host.name, release=lock.id)
    if report.dry():
        line = fitness.fits(carried, extra(lock, goldens), settings)[1]
        parts = fitness.split(carried, settings)
        planned = sum(carried.values()) + sum(extra(lock, goldens).values())
        report.record(host.name, state="would change", bundle_bytes=planned, bundle_parts=len(parts), why=line)
        return

    def work(host: Any) -> bool:
        set_up_bastion(host, settings)
        outgoing = f"{settings.model_store}/outgoing"
        made = fleet.run(host, StringCommand("mkdir -p --", QuoteString(outgoing)), None, 60)[0]
        if not made or not put(host, f"{outgoing}/tool.tar.gz", archive()):
            raise Refused(host.name, "cannot write the tool's archive", next=f"look at {outgoing} there")
        files = {"tool.tar.gz": f"{outgoing}/tool.tar.gz", **wheels(host, settings)}
        document = {"lock": lock.document, "have": dict(have), "texts": texts(lock, settings, goldens), "files": files}
        document["about"] = {"who": report.who(), "have_at": have_at}
        logger.info(f"    [{host.name}] {size(sum(carried.values()))} of blobs to {settings.bundle}")
        size_of_part, within = in_bytes(settings.bundle_part_size), settings.fetch_deadline
        more: dict[str, Any] = {"bundle": settings.bundle, "part_size": size_of_part, "within": within}
        told = expect(call(host, "bundle", "write", document=json.dumps(document), deadline=within + 600, **more))
        others = {"the rest": told["bytes"] - sum(carried.values())}
        good, line = fitness.fits(carried, others, settings)
        line += f"; tell the far side by another way: sha256 of SHA256SUMS is {told['sums']}"
        report.record(host.name, state="written" if told["changed"] else "unchanged", why=line)
        report.record(host.name, bundle_bytes=told["bytes"], bundle_parts=told["parts"], written_bytes=told["written"])
        return good or fail(host, line)

    yield guarded(work, phase="bundle")


@operation(is_idempotent=True)
def have(settings: Settings):
    """reports/have.json: what this bastion's store holds, hashed now."""

    def work(host: Any) -> bool:
        if not report.RESULTS[host.name]["seen"]:
            raise Refused(host.name, "could not be looked at", next="run again with -v")
        set_up_bastion(host, settings)
        found = expect(call(host, "bundle", "have", deadline=14400))
        document = {"format": 1, "at": found["at"], "blobs": found["blobs"]}
        locks.replace(HAVE, json.dumps(document, indent=1, sort_keys=True) + "\n")
        damaged = [name[:12] for name in found["damaged"]]
        why = f"{HAVE}: bring it to the connected side"
        if damaged:
            why += f"; damaged here, so the next bundle brings them again: {', '.join(damaged)}"
        report.record(host.name, state="written", why=why)
        report.record(host.name, blob_count=len(found["blobs"]), hashed_bytes=found["bytes"])
        return True

    if report.dry():
        report.record(host.name, state="would change", why=f"{HAVE} would be written")
        return
    yield guarded(work)
