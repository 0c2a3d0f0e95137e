"""The operator's signatures of lock and goldens, checked against this machine's own list of who may sign.

    signed keep  --store S --release ID   (stdin: {"lock": {"path", "text", "signature"}, "goldens": the same or null})
    signed check --store S --release ID   checks the lock and the goldens that are kept here

If the list exists (SIGNERS), nothing is admitted and nothing is activated without a signature by a key of it. The control
machine cannot switch that off. The machine's administrator writes that file; no program of ours does. ssh-keygen alone reads its
lines (certificates, namespaces, dates). `--signers` names the list of a test.

state/<id>/signed.json holds the lock's text and both signatures. The second one is of state/<id>/goldens.json. So a rollback
needs no other machine. What was sent lies in state/<id>/candidate/ until a smoke test has passed with it (smoke_test.py).
One JSON line on standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.remote.common.files import print_answer, read_text, remove, write_file
from tasks.remote.host.records import Records
from tasks.shared.errors import Refused
from tasks.shared.lock import parse_lock
from tasks.shared.signatures import NAMESPACE, SIGNERS, sign_command, writable_by_others

SIGNED = "signed.json"
Entry = Mapping[str, Any]  # {"path" in git, "text", "signature" or None} of one signed file
WITHIN = 60  # seconds; ssh-keygen takes milliseconds


def required(signers: str) -> bool:
    """Whether this machine has a list of signers. Raise Refused where others than root can change it."""
    try:
        os.lstat(signers)
    except FileNotFoundError:
        return False
    paths = [os.path.abspath(signers)]
    while paths[-1] != "/":
        paths.append(os.path.dirname(paths[-1]))
    found = [(path, os.lstat(path)) for path in paths]
    loose = writable_by_others((path, info.st_uid, info.st_mode) for path, info in found)
    if loose:
        fix = f"chown root, chmod go-w: {signers} and the directories above it"
        raise Refused(signers, "can be changed by others than root", "root's alone, and no link", loose, fix)
    return True


def keygen(verb: str, *words: str, text: bytes = b"") -> tuple[bool, list[str], str]:
    """Run `ssh-keygen -Y VERB`. Return whether it says yes, the lines of its output, and its complaint."""
    try:
        done = subprocess.run(["ssh-keygen", "-Y", verb, *words], input=text, capture_output=True, timeout=WITHIN)
    except FileNotFoundError:
        raise Refused("ssh-keygen", "is missing; it checks signatures", next="install OpenSSH's client") from None
    except subprocess.TimeoutExpired:
        raise Refused("ssh-keygen", f"took longer than {WITHIN} s", next="run it by hand there") from None
    complaint = "; ".join(done.stderr.decode("utf-8", "replace").strip().splitlines()[:3])
    return done.returncode == 0, done.stdout.decode("utf-8", "replace").splitlines(), complaint


def verify(signers: str, entry: Entry) -> str:
    """Refuse unless the entry's signature is of this very text, in our namespace, by an allowed signer. Return that signer."""
    path, text, fix = entry["path"], entry["text"].encode("utf-8"), f"{sign_command(entry['path'])}, then deploy.py"
    if not entry["signature"]:
        raise Refused(signers, f"asks for a signature of {path}", f"{path}.sig", "none: it is not signed", fix)
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "signature")
        write_file(file, entry["signature"])
        fits, key, complaint = keygen("check-novalidate", "-n", NAMESPACE, "-s", file, text=text)
        if not fits:
            expected = f"one of these very bytes, in the namespace {NAMESPACE}"
            raise Refused(signers, f"{path} has a signature that does not fit", expected, complaint, fix)
        _, names, refusal = keygen("find-principals", "-s", file, "-f", signers)
        for name in names:
            words = ("-n", NAMESPACE, "-I", name, "-s", file, "-f", signers)
            is_good, _, refusal = keygen("verify", *words, text=text)
            if is_good:
                return name
    what, found = f"does not allow the key that signed {path}", f"{' '.join(key)} ({refusal})"
    fix += "; or the administrator of this host allows that key"
    raise Refused(signers, what, "a key of this file", found, fix)


def refuse_other_release(release_id: str, path: str, found: str | None) -> None:
    """Refuse a file of another release: its good signature proves nothing of this one."""
    if found != release_id:
        raise Refused(path, "is another release's", str(release_id)[:12], str(found)[:12], "git checkout of that file")


def read_kept(signers: str, release_id: str, *folders: str) -> dict[str, Any]:
    """The first signed.json in these folders: {"lock": entry, "goldens": entry without a text, or None}.

    Refuse where there is none, and unless its lock is signed and this release's own.
    """
    path = os.path.join(folders[-1], SIGNED)
    text = next(filter(None, (read_text(os.path.join(folder, SIGNED)) for folder in folders)), None)
    if text is None:
        what = f"asks for a signature, and release {release_id[:12]} has none on this machine"
        names = ("group_data/locks/LOCK.json", "group_data/locks/LOCK.goldens.json")
        raise Refused(signers, what, path, "no file", f"{sign_command(*names)}, then deploy.py of that lock")
    entries: dict[str, Any] = json.loads(text)
    verify(signers, entries["lock"])
    refuse_other_release(release_id, entries["lock"]["path"], parse_lock(entries["lock"]["text"]).id)
    return entries


def check_lock(store: str, release_id: str, signers: str = SIGNERS) -> None:
    """Refuse to admit bytes for a lock that the operator has not signed, where this machine asks for signatures."""
    if required(signers):
        read_kept(signers, release_id, Records(store).candidate(release_id), os.path.join(store, "state", release_id))


def check(store: str, release_id: str, signers: str = SIGNERS) -> dict[str, Any]:
    """Refuse a switch, forward or back, to a release whose lock or goldens the operator has not signed.

    Return {"required": whether this machine asks for signatures, "signer": who signed the goldens}.
    """
    Records(store).settle(release_id)
    if not required(signers):
        return {"required": False}
    folder = os.path.join(store, "state", release_id)
    goldens = read_kept(signers, release_id, folder)["goldens"]
    text = read_text(os.path.join(folder, "goldens.json"))
    if goldens is None or text is None:
        what = f"asks for signed goldens, and release {release_id[:12]} has none on this machine"
        raise Refused(signers, what, f"{folder}/goldens.json and its signature", "none", "deploy.py")
    signer = verify(signers, {**goldens, "text": text})
    refuse_other_release(release_id, goldens["path"], json.loads(text).get("release"))
    return {"required": True, "signer": signer}


def keep(store: str, release_id: str, sent: Mapping[str, Any], signers: str = SIGNERS) -> dict[str, Any]:
    """Check what the controller sent, where this machine asks for signatures; then keep it for the next smoke test.

    `sent`: {"lock": entry, "goldens": entry or None}. A refusal changes nothing.
    """
    lock, goldens = sent["lock"], sent["goldens"]
    refuse_other_release(release_id, lock["path"], parse_lock(lock["text"], lock["path"]).id)
    if required(signers):
        for entry in filter(None, (lock, goldens)):
            verify(signers, entry)
    if goldens:
        refuse_other_release(release_id, goldens["path"], json.loads(goldens["text"]).get("release"))
    folder = Records(store).candidate(release_id)
    signature = None
    if goldens and goldens["signature"]:
        signature = {key: goldens[key] for key in ("path", "signature")}
    text = json.dumps({"lock": lock, "goldens": signature}, sort_keys=True)
    if not lock["signature"] or text == read_text(os.path.join(store, "state", release_id, SIGNED)):
        remove(os.path.join(folder, SIGNED))  # of an earlier call
    else:
        os.makedirs(folder, exist_ok=True)
        write_file(os.path.join(folder, SIGNED), text)
    return {"kept": bool(lock["signature"])}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="signed")
    parser.add_argument("verb", choices=["keep", "check"])
    parser.add_argument("--store", required=True)
    parser.add_argument("--release", required=True)
    parser.add_argument("--signers", default=SIGNERS)
    args = parser.parse_args(argv)
    os.umask(0o022)
    return print_answer(lambda: run(args), args.store)


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.verb == "check":
        return check(args.store, args.release, args.signers)
    return keep(args.store, args.release, json.load(sys.stdin), args.signers)
