"""One rollout at a time on this host: the lease is a process that lives while its rollout does, so nobody cleans up after it.

    lease hold   --store S --id X --who W --release R --why Y   answers, then holds while standard input speaks
    lease show   --store S                                      {"lease": {…} or null}
    lease unlock --store S --id X --who W                       ends the holder of lease X

The kernel frees a dead holder's lock. A holder that hears nothing for a while (a cut line) ends by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import time

from tasks.remote.common.files import (
    as_refused,
    hold_lock,
    is_locked,
    print_answer,
    read_record,
    read_text,
    remove,
    utc_now,
    write_file,
)
from tasks.remote.host.records import Records
from tasks.shared.errors import Refused

SILENCE = 30.0  # seconds; the controller speaks every five


def paths(store):
    return os.path.join(store, ".lease.lock"), os.path.join(store, "lease.json")


def show(store):
    """Whose lease it is, or None; a note without its holder is none."""
    lock, note = paths(store)
    return read_record(note) if is_locked(lock) else None


def described(lease):
    return (
        f"lease {lease.get('id')} of {lease.get('who')} for release {str(lease.get('release'))[:12]}, "
        f"since {lease.get('since')}: {lease.get('why')}"
    )


def hold(args):
    lock, note = paths(args.store)
    try:
        with hold_lock(lock, "is held", within=1.0):
            about = {key: getattr(args, key) for key in ("id", "who", "release", "why")}
            write_file(note, json.dumps({**about, "since": utc_now(), "pid": os.getpid()}))
            print_answer(lambda: {"lease": args.id, "current": Records(args.store).current()}, args.store)
            while select.select([sys.stdin], [], [], SILENCE)[0] and os.read(0, 4096):
                pass
            remove(note)
            return 0
    except Refused:
        holder = read_record(note)
        found = described(holder) if holder else f"no note of whose it is, and {lock} held by {read_text(lock)}"
        mend = f"tasks/unlock.py --data lease={holder['id']}" if "id" in holder else "end that process there"
        no = Refused(args.store, "is in another rollout", "no lease", found, f"wait for it, or {mend}")
    except OSError as error:  # a disk that is full, or read-only
        no = as_refused(error, args.store)
    return print_answer(lambda: {"ok": False, "error": no.error}, args.store)


def unlock(args):
    lease = show(args.store)
    if lease is None:
        return {"unlocked": False}
    if lease.get("id") != args.id:
        found = described(lease) if lease else f"no note of whose it is, and {paths(args.store)[0]} held"
        raise Refused(args.store, "has another lease", args.id, found, "tasks/status.py shows it")
    Records(args.store).journal("unlock", lease=lease, who=args.who)
    os.kill(lease["pid"], signal.SIGTERM)
    until = time.monotonic() + 10
    while show(args.store) is not None:
        if time.monotonic() > until:
            raise Refused(args.store, "is still held", "no lease", described(lease), f"kill {lease['pid']} there")
        time.sleep(0.1)
    return {"unlocked": True, "lease": described(lease)}


def main(argv):
    parser = argparse.ArgumentParser(prog="lease")
    parser.add_argument("verb", choices=["hold", "show", "unlock"])
    parser.add_argument("--store", required=True)
    for option in ("--id", "--who", "--release", "--why"):
        parser.add_argument(option, default="")
    args = parser.parse_args(argv)
    os.umask(0o022)
    if args.verb == "hold":
        return hold(args)
    return print_answer(lambda: unlock(args) if args.verb == "unlock" else {"lease": show(args.store)}, args.store)
