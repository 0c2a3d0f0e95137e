"""A release onto a drive, where no wire crosses the gap; and the far side's list of what need not travel again."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyinfra import host, logger
from pyinfra.api import QuoteString, StringCommand, operation

from tasks.control.git import files as git_files
from tasks.control.git.goldens import Goldens
from tasks.control.git.lockfile import lock_path
from tasks.control.git.signatures import files_to_sign
from tasks.control.host_run import HostRun
from tasks.control.operations.fetching import ensure_venv, set_up_bastion, venv
from tasks.control.reporting.recorder import FOLDER
from tasks.control.rules.preflight import fits_drive, part_sizes
from tasks.control.rules.states import State
from tasks.control.rules.units import in_bytes, size
from tasks.control.run import Run
from tasks.control.settings import Settings
from tasks.control.tool import REPOSITORY, call, expect, fail, guarded, put_file
from tasks.control.who import who
from tasks.shared.blobs import missing_blobs
from tasks.shared.errors import Refused
from tasks.shared.lock import Lock, lock_text
from tasks.shared.names import SHA256

CONTENTS = FOLDER / "contents.json"
WHEELS = 100_000_000  # bytes set aside before pip has said how many they are: 63 MB for Python 3.10 and 3.11
README = """\
Release {release} of {model}, for hosts without a network. On the far control machine (Python {python}, Linux as the bastion's), in this directory:
1. sha256sum SHA256SUMS: compare with what the sender tells you by another way (telephone, ticket), and unpack nothing before that; then sha256sum -c --quiet SHA256SUMS
2. tar xf tool.tar.gz -C ~ (over an older hf-offline/, if there is one); mkdir -p ~/hf-offline/group_data/locks && {copy}
3. python3 -m venv ~/hf-offline/.venv && ~/hf-offline/.venv/bin/pip install --no-index --find-links wheels -r ~/hf-offline/requirements.txt
4. This directory to the far bastion (a mounted drive, or a copy); in group_data there: source = "bundle", bundle = "/its/path".
5. In ~/hf-offline, with .venv activated: pyinfra -y INVENTORY deploy.py ; then tasks/contents.py, and reports/contents.json back to the sender.
"""


def read_contents(path: str) -> tuple[dict[str, int], str | None]:
    """({sha256: size}, when) of the far side's contents.json; ({}, None) without a path. Raises Refused for another file."""
    if not path:
        return {}, None
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        found = document["blobs"]
        fine = document["format"] == 1 and all(SHA256.fullmatch(n) and type(count) is int for n, count in found.items())
        when = str(document["at"])
    except OSError as error:
        raise Refused(path, "cannot be read", found=str(error.strerror), next="--data contents=PATH") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fine, found, when = False, repr(error), ""
    if not fine:
        raise Refused(path, "is no contents.json of format 1", next="tasks/contents.py on the far side")
    return found, when


def archive() -> bytes:
    """The repository at HEAD as hf-offline/ in a tar.gz. What is not committed does not travel."""
    words = ["git", "archive", "--format=tar", "--prefix=hf-offline/", "HEAD"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True)
    if done.returncode:
        found = done.stderr.decode("utf-8", "replace").strip()
        raise Refused(str(REPOSITORY), "gives no archive of the tool", "a git clone", found, "git status")
    return gzip.compress(done.stdout, mtime=0)


def warn_of_changes() -> None:
    """Tell the operator of changes that are not committed: they do not travel."""
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=REPOSITORY, capture_output=True, text=True)
    if count := len(changed.stdout.splitlines()):
        logger.warning(f"    tool.tar.gz is the last commit; {count} changes since stay here")


def extra_files(lock: Lock, goldens: Goldens) -> dict[str, int]:
    """What travels beside the blobs, before it is all there: {name: size in bytes}."""
    texts = {"lock.json": len(lock_text(lock.document)), "goldens.json": 0}
    if goldens.belong_to(lock):
        texts["goldens.json"] = len(goldens.text())
    return {**texts, "tool.tar.gz": len(archive()), "wheels": WHEELS}


def small_files(lock: Lock, settings: Settings, goldens: Goldens) -> dict[str, str]:
    """The small files of the bundle: {name: text}."""
    found = {"lock.json": lock_text(lock.document)}
    copy = f"cp lock.json ~/hf-offline/{lock_path(settings)}"
    if goldens.belong_to(lock):
        found["goldens.json"] = goldens.text()
        copy += f" && cp goldens.json ~/hf-offline/{goldens.path}"
    for name, file in files_to_sign(settings, lock).items():
        if file.signature:
            found[f"{name}.json.sig"] = file.signature
            copy += f" && cp {name}.json.sig ~/hf-offline/{file.path}.sig"
    words = {"release": lock.id, "model": lock.served.repo, "python": settings.bundle_python, "copy": copy}
    return {**found, "README.txt": README.format(**words)}


def wheels(run: Run, me: HostRun) -> dict[str, str]:
    """{name in the bundle: path on the bastion} of the packages of the far control machine, downloaded once."""
    text = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    ensure_venv(run, me)
    mark = hashlib.sha256(f"{me.settings.bundle_python}\n{text}".encode()).hexdigest()[:12]
    into = f"{me.settings.model_store}/wheels-{mark}"
    more: dict[str, Any] = {"into": into, "for_python": me.settings.bundle_python, "within": 900, "deadline": 2000}
    got = expect(call(run, me, "wheels", "get", document=text, python=f"{venv(me.settings)}/bin/python", **more))
    return {f"wheels/{name}": f"{into}/{name}" for name in got["files"]}


@operation(is_idempotent=True)
def bundle(run: Run, contents: Mapping[str, int], contents_at: str | None) -> Any:
    """Lock, goldens, tool, its wheels and the blobs that the far side lacks, onto the drive, and read back from it."""
    me, lock = run.hosts[host.name], run.release
    if me.state is State.UNFIT:
        host.noop("unfit")
        return
    carried = missing_blobs(lock.blobs(), contents)
    me.report.release = lock.id
    if run.command_line.dry:
        extra = extra_files(lock, run.goldens)
        me.says(State.WOULD_CHANGE, fits_drive(carried, extra, me.settings)[1])
        me.report.bundle_bytes = sum(carried.values()) + sum(extra.values())
        me.report.bundle_parts = len(part_sizes(carried, me.settings))
        return
    yield guarded(me, lambda: write_bundle(run, me, lock, contents, contents_at), phase="bundle")


def write_bundle(run: Run, me: HostRun, lock: Lock, contents: Mapping[str, int], contents_at: str | None) -> bool:
    settings, carried = me.settings, missing_blobs(lock.blobs(), contents)
    set_up_bastion(run, me)
    outgoing = f"{settings.model_store}/outgoing"
    warn_of_changes()
    made = run.sessions.run(me.target, StringCommand("mkdir -p --", QuoteString(outgoing)), None, 60)[0]
    if not made or not put_file(run, me, f"{outgoing}/tool.tar.gz", archive()):
        raise Refused(me.name, "cannot write the tool's archive", next=f"look at {outgoing} there")
    document = {
        "lock": lock.document,
        "contents": dict(contents),
        "texts": small_files(lock, settings, run.goldens),
        "files": {"tool.tar.gz": f"{outgoing}/tool.tar.gz", **wheels(run, me)},
        "about": {"who": who(), "contents_at": contents_at},
    }
    logger.info(f"    [{me.name}] {size(sum(carried.values()))} of blobs to {settings.bundle}")
    part_size, within = in_bytes(settings.bundle_part_size), settings.fetch_deadline
    more: dict[str, Any] = {"bundle": settings.bundle, "part_size": part_size, "within": within}
    answer = expect(call(run, me, "bundle", "write", document=document, deadline=within + 600, **more))
    others = {"the rest": answer["bytes"] - sum(carried.values())}
    good, line = fits_drive(carried, others, settings)
    line += f"; tell the far side by another way: sha256 of SHA256SUMS is {answer['sums']}"
    me.says(State.WRITTEN if answer["changed"] else State.UNCHANGED, line)
    me.report.bundle_bytes, me.report.bundle_parts = answer["bytes"], answer["parts"]
    me.report.written_bytes = answer["written"]
    return good or fail(me, line)


@operation(is_idempotent=True)
def list_contents(run: Run) -> Any:
    """reports/contents.json: what this bastion's store holds, hashed now."""
    me = run.hosts[host.name]
    if run.command_line.dry:
        me.says(State.WOULD_CHANGE, f"{CONTENTS} would be written")
        return
    yield guarded(me, lambda: write_contents(run, me))


def write_contents(run: Run, me: HostRun) -> bool:
    if me.facts is None:
        raise Refused(me.name, "could not be inspected", next="run again with -v")
    set_up_bastion(run, me)
    found = expect(call(run, me, "bundle", "contents", deadline=14400))
    document = {"format": 1, "at": found["at"], "blobs": found["blobs"]}
    git_files.replace(CONTENTS, json.dumps(document, indent=1, sort_keys=True) + "\n")
    why = f"{CONTENTS}: bring it to the connected side"
    if damaged := [name[:12] for name in found["damaged"]]:
        why += f"; damaged here, so the next bundle brings them again: {', '.join(damaged)}"
    me.says(State.WRITTEN, why)
    me.report.blob_count, me.report.hashed_bytes = len(found["blobs"]), found["bytes"]
    return True
