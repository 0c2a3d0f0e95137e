"""Activates a release on a host, alone: journal, drain, switch, health, probe, soak, confirm; else it puts the old one back.

    switch activate --store S --release ID --stack DIR --override NAME --project P --service N
                    --within SEC --soak SEC --confirm SEC [--recreate] [--previous ID] [--lease ID]
                    (stdin: {"who", "why", "probe", "expect_env", "drain", "readmit"})
    switch check    --store S --release ID --stack DIR --override NAME --project P --service N     whether it could; changes nothing
    switch stays    … --release ID --stack DIR --override NAME --project P --service N    whether what was confirmed serves still
                    (stdin: {"container", "started", "networks", "expect_env"})
    switch confirm  --store S --token T     over a new connection; prints how the activation ended
    switch recover  --store S

`activate` runs detached: a controller that dies, a cut line or a deadline end in the new release, confirmed, or in the
old one. It answers when the new release works ("awaiting"), and puts the old one back unless `confirm` comes in time:
who cannot get in again did not mean to cut the host off. Every step stands in journal.jsonl before it is done; a run
that was killed is finished by `recover`, at boot or by the next run. A revert that fails freezes the host: nothing more
is tried, and `state/frozen` says why. One JSON line on standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import subprocess
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
from tasks.remote.host import lease, signed
from tasks.remote.host.probe import probe
from tasks.remote.host.records import Records
from tasks.remote.host.service import Service, docker, ghost, networks, restart_engine
from tasks.shared.errors import Refused
from tasks.shared.signatures import SIGNERS
from tasks.shared.stack import MARKER

WAIT = 0.1  # seconds between looks for the confirmation
REVERT = 300  # seconds at least: a short deadline is for the new release, the old one may take its time
REVERTS = 3  # tries: what a power cut left of a container can make Compose fail once
RUNNING = ("running", "restarting")
COMMAND = 300  # seconds at most for the operator's drain, and for their readmit


class Stopped(Exception):
    """A signal asked the activation to end; it reverts first."""


def refuse_frozen(records):
    text = read_text(records.frozen)
    if text is not None:
        try:
            why = json.loads(text)["why"]
        except (ValueError, LookupError, TypeError):
            why = text
        said = "says that this host is frozen"
        raise Refused(records.frozen, said, "no such file", str(why)[:800], "mend the service, then remove that file")


def refuse_others_lease(args):
    """A rollout whose line was cut, or that was stopped for a while, may have lost the host to another by now."""
    holder = lease.show(args.store) or {}
    if args.lease and holder.get("id") != args.lease:
        found = lease.described(holder) if holder else "none"
        what = "lost its lease: somebody took it, or the connection broke"
        raise Refused(args.store, what, args.lease, found, "tasks/status.py, then the same again")


def override_of(args):
    return os.path.join(args.store, "state", args.release, "compose.override.yaml")


def check(args, asked):
    """What `activate` would refuse at its beginning, said before anything is switched anywhere."""
    records = Records(args.store)
    refuse_frozen(records)
    records.intent()
    signed.check(args.store, args.release, args.signers)
    service = Service(args.stack, args.override, args.project, args.service)
    check_before(records, service, args.release, override_of(args))
    goldens_of(args.store, args.release, asked.get("probe"))
    return {"recreate": os.path.exists(records.recreate)}


def stays(args, asked):
    """The container that was confirmed serves on: the same, never restarted, with what it was given."""
    current = Records(args.store).current()
    if current != args.release:
        what = "has another current release"
        raise Refused(args.store, what, args.release[:12], str(current)[:12], "tasks/status.py")
    service = Service(args.stack, args.override, args.project, args.service)
    there = {"Networks": dict.fromkeys(asked["networks"])}
    service.soak({"Id": asked["container"], "State": {"StartedAt": asked["started"]}, "NetworkSettings": there}, 0)
    service.check_inside(service.container(), args.store, args.release, asked["expect_env"])
    return {}


def goldens_of(store, release_id, asked):
    """What the probe asks and compares with; without any, a service that embeds wrongly would be confirmed."""
    path = os.path.join(store, "state", release_id, "goldens.json")
    try:
        found = json.loads(read_text(path) or "{}")
        there = bool(next(iter(found["classes"].values()))["queries"])
    except (ValueError, AttributeError, TypeError, LookupError, StopIteration):
        found, there = {}, False
    if asked and not there:
        mend = "deploy.py, which brings them; where smoke_command embeds nothing, no setting probe"
        raise Refused(path, "holds nothing that the probe could ask", "the release's goldens", "none", mend)
    return found


def check_before(records, service, release_id, override):
    """Everything that can be known before anything changes: release, image, override, Compose's own opinion."""
    records.refuse_odd(release_id)
    root = os.path.join(records.store, "releases", release_id)
    if not os.path.isfile(os.path.join(root, "lock.json")):
        raise Refused(root, "is not built", "an admitted release", "no lock.json in it", "deploy.py")
    records.lock(release_id)
    if read_text(override) is None:
        raise Refused(override, "does not exist", "an override whose smoke test passed", "no file", "deploy.py")
    in_place = read_text(service.override)
    if in_place is not None and not in_place.startswith(MARKER):
        raise Refused(service.override, "is not ours", MARKER, in_place[:40], "move what it says into the stack's file")
    if os.path.islink(service.override):
        found = f"a link to {os.readlink(service.override)}"
        raise Refused(service.override, "is a link, and would become a file", "a file or nothing", found, "remove it")
    try:  # a read-only directory says so now, and not half-way
        write_file(f"{service.override}.try", "")
        remove(f"{service.override}.try")
    except OSError as error:
        error.filename = service.stack
        raise
    files = service.files(override)
    done = docker("compose", "-p", service.project, "--project-directory", service.stack, *files, "config", "-q")
    if done.returncode:
        said = done.stderr.strip()[-400:]
        raise Refused(override, "is refused by docker compose config", found=said, next="look at group_data")


def command(what, words):
    """The operator's own `drain` or `readmit`: a shell line of theirs, run on the host; it must bear being run twice."""
    if not words:
        return
    # Not a pipe: what they leave in the background would hold it open. Not a file: the disk may be full.
    with open(os.memfd_create("said"), "r+b") as said:
        more = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said, "start_new_session": True}
        process = subprocess.Popen(["sh", "-c", words], **more)
        try:
            code = process.wait(COMMAND)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise Refused(f"{what} command", f"took longer than {COMMAND} s", next=f"setting {what}") from None
        if code:
            said.seek(0)
            found = said.read().decode("utf-8", "replace").strip()[-300:]
            raise Refused(f"{what} command", f"failed with code {code}", found=found, next=f"setting {what}")


# ------------------------------------------------------------------------------------------------------------ activate


def activate(args, ask, tell):
    """Old or new, complete; -> the outcome. `tell` gets what is to be confirmed."""
    records = Records(args.store)
    service = Service(args.stack, args.override, args.project, args.service)
    refuse_frozen(records)
    refuse_others_lease(args)
    recovered = recover(records)
    refuse_frozen(records)
    signed.check(args.store, args.release, args.signers)
    override = override_of(args)
    check_before(records, service, args.release, override)
    goldens = goldens_of(args.store, args.release, ask.get("probe"))
    old, was, in_place = records.current(), service.container(), read_text(service.override)
    intent = {"from": old, "to": args.release, "who": ask.get("who"), "why": ask.get("why"), "within": args.within}
    intent |= {key: getattr(args, key) for key in ("stack", "override", "project", "service")}
    intent |= {"previous": args.previous or old}
    intent |= {"had_container": bool(was), "had_override": in_place is not None, "readmit": ask.get("readmit")}
    # One that crashes in a loop is left to it: "stopped" would outlast a reboot.
    status = was["State"]["Status"] if was else None
    intent |= {"was_running": status in RUNNING, "was_healthy": healthy(was)}
    intent |= {"container": was["Id"] if was else None, "status": status}
    records.journal("begin", **{key: intent[key] for key in ("from", "to", "who", "why")})
    if in_place is not None:
        write_file(records.before, in_place)
    remove(records.confirmation)
    write_file(records.pending, json.dumps(intent))
    started = time.monotonic()
    try:
        records.journal("drain")
        command("drain", ask.get("drain"))
        records.journal("switch", to=args.release)
        down = time.monotonic()  # the deadline is the service's; a drain has its own
        write_file(service.override, read_text(override))
        anew = args.recreate or os.path.exists(records.recreate) or (old == args.release and not healthy(was))
        service.up(args.within, anew)
        found = service.wait_healthy(max(1, args.within - (time.monotonic() - down)), was)
        records.journal(
            "check", to=args.release, container=found["Id"], switch_seconds=round(time.monotonic() - down, 2)
        )
        service.check_inside(found, args.store, args.release, ask.get("expect_env") or {})
        cosine = probe(ask.get("probe"), goldens)
        records.journal("soak", seconds=args.soak)
        service.soak(found, args.soak)
        changed = not was or was["Id"] != found["Id"] or old != args.release
        answer = {"changed": changed, "from": old, "to": args.release, "container": found["Id"]}
        answer |= {"started": found["State"]["StartedAt"], "networks": sorted(networks(found)), "cosine": cosine}
        answer |= {"seconds": round(time.monotonic() - started, 2), "recovered": recovered}
        await_confirmation(records, args.confirm, tell, answer)
        # While somebody was logging in, nobody looked.
        service.soak(found, 0)
        service.check_inside(found, args.store, args.release, ask.get("expect_env") or {})
        probe(ask.get("probe"), goldens)
        deaf()
        write_file(records.pending, json.dumps({**intent, "confirmed": True}))
    except Exception as error:  # whatever it is, the host goes back, and nothing interrupts that
        deaf()
        no, logs = as_refused(error, "activate").error, last_words(service)
        state = revert(records, intent)
        return {"ok": False, "state": state, "error": {**no, "where": f"{state}: {no['where']}"}, "logs": logs}
    # Only forward from here: what fails now leaves the intent, with that word in it, to the next run.
    confirm(records, intent)
    return finish(records, intent, {**answer, "state": "active"})


def deaf():
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def healthy(container):
    """Whether a container (or None) was in order: what an activation may ask of it after a revert."""
    state = (container or {}).get("State", {})
    return state.get("Status") == "running" and (state.get("Health") or {}).get("Status", "healthy") == "healthy"


def last_words(service):
    with contextlib.suppress(Exception):  # a courtesy; the revert matters more
        return service.logs()
    return ""


def await_confirmation(records, within, tell, answer):
    token = f"{os.getpid()}-{time.time_ns()}"
    records.journal("await", token=token, seconds=within)
    tell({**answer, "state": "awaiting", "token": token})
    until = time.monotonic() + within
    while read_text(records.confirmation) != token:
        if time.monotonic() > until:
            found = "nobody could log in again, or the controller died"
            raise Refused("activate", "was not confirmed", f"a new connection within {within:.0f} s", found)
        time.sleep(WAIT)


def confirm(records, intent):
    """What a confirmed release changes in the records; written again where it was cut off."""
    records.journal("confirm", to=intent["to"])
    write_file(os.path.join(records.store, "current"), f"{intent['to']}\n")
    if intent["from"] != intent["to"]:
        write_file(os.path.join(records.store, "previous"), f"{intent['previous'] or ''}\n")
    # The same release may be staged again with other settings, and those be turned down: what was confirmed stays told.
    if text := read_text(os.path.join(intent["stack"], intent["override"])):
        write_file(os.path.join(records.store, "state", intent["to"], "compose.confirmed.yaml"), text)


def finish(records, intent, answer):
    """The host takes requests again; only then is nothing pending. A readmit that fails is told, and nothing is undone.

    Nor is it done where an earlier one failed, and this run has none.
    """
    try:
        if not intent.get("readmit") and os.path.lexists(records.away):
            mend = f"the setting readmit, then deploy.py; or by hand, then rm {records.away}"
            raise Refused(records.away, "says that this host was not readmitted", next=mend)
        command("readmit", intent.get("readmit"))
    except Refused as no:
        records.tell("not readmitted", **no.error)
        answer = {**answer, "ok": False, "state": f"{answer['state']}, not readmitted", "error": no.error}
        try:
            if intent.get("readmit"):
                write_file(records.away, json.dumps({"why": str(no)}))
        except OSError:
            return answer  # a full disk: the intent stays, and the next run readmits
    else:
        remove(records.away)
    remove(records.pending)
    if answer["state"].startswith("active"):
        remove(records.recreate)
    return answer


def revert(records, intent):
    """Put back what was; -> "withdrawn", or "frozen" when that fails too: then nothing more is tried."""
    records.tell("revert", to=intent["from"])
    service = Service(intent["stack"], intent["override"], intent["project"], intent["service"])
    until, tries = time.monotonic() + max(intent["within"], REVERT), 0
    while True:
        try:
            put_back(records, service, intent, until - time.monotonic(), anew=tries > 0)
            break
        except Exception as error:
            answers = engine_answers()
            tries += answers and "address already in use" not in str(error)  # whoever has the port may let it go
            if time.monotonic() < until and (not answers or tries < REVERTS):
                if answers:
                    anew = ghost(str(error)) and restart_engine()
                    records.tell("revert again", why=str(error)[-300:], engine_restarted=anew)
                time.sleep(1)  # an engine that restarts comes back
                continue
            why = {
                "why": f"reverting to {intent['from']} failed: {error}",
                "at": utc_now(),
                "logs": last_words(service),
            }
            with contextlib.suppress(OSError):  # a full disk: the intent stays, and the next run tries again
                write_file(records.frozen, json.dumps(why))
            records.tell("frozen", why=why["why"])
            return "frozen"
    records.tell("withdrawn", to=intent["from"])
    return finish(records, intent, {"state": "withdrawn"})["state"]


def put_back(records, service, intent, within, anew):
    """The records, the override and the service as they were when the switch began; `anew`: its containers go first."""
    alike = untouched(service, intent)
    if anew and not alike:
        service.clear()  # first, as its logs may be what fills the disk
    if intent["from"] and records.current() != intent["from"]:
        write_file(os.path.join(records.store, "current"), f"{intent['from']}\n")
    elif not intent["from"]:
        remove(os.path.join(records.store, "current"))
    if not intent["had_override"]:
        remove(service.override)
    elif read_text(service.override) != read_text(records.before):
        write_file(service.override, read_text(records.before))
    if alike:
        service.without_loader()
    elif intent["was_running"]:
        was = service.container()
        service.up(within)
        if intent["was_healthy"]:  # what was sick before is left as sick as it was
            service.wait_healthy(within, was)
    elif intent["had_container"]:
        service.done("up", "--no-start", "--no-build", "--pull", "never", service.name)
        service.done("stop", service.name)
        service.without_loader()
    else:
        service.done("rm", "--stop", "--force", service.name)
        service.without_loader()


def untouched(service, intent):
    """Whether the container from before is there alone, as it was: what failed did so before it got to it."""
    was = service.container() if service.containers() == [intent.get("container")] else None
    if was is None:
        return False
    status = was["State"]["Status"]
    alike = status in RUNNING if intent["was_running"] else status == intent.get("status")
    return alike and (healthy(was) or not intent["was_healthy"])


def recover(records):
    """Finish what a killed run left: its intent stands in state/pending; anything not confirmed is put back."""
    # frozen: nothing more is tried
    intent = records.intent() if read_text(records.frozen) is None else None
    if intent is None:
        return None
    if intent.get("confirmed"):
        confirm(records, intent)
        return finish(records, intent, {"state": "active"})["state"]
    return revert(records, intent)


def engine_answers():
    # Not `docker info`: up to 28 it ends well without an engine.
    return docker("version", "--format", "{{.Server.Version}}").returncode == 0


# ---------------------------------------------------------------------------------------------------------------- main


def switching(store):
    return os.path.join(store, ".switch.lock")


def alone(store, within):
    return hold_lock(switching(store), "is being switched", within)


def detached(args, ask):
    """Runs `activate` in a session of its own; -> its first words: what is to be confirmed, or how it ended."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):  # the connection may end; this does not
            os.dup2(null, fd)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        os._exit(background(args, ask, writing))
    os.close(writing)
    text, until = b"", time.monotonic() + 2 * args.within + args.soak + REVERT + 2 * COMMAND + 120
    while b"\n" not in text and select.select([reading], [], [], max(0, until - time.monotonic()))[0]:
        chunk = os.read(reading, 65536)
        if not chunk:
            break
        text += chunk
    if b"\n" not in text:
        no = Refused("activate", "ended without an answer", found="killed, or out of time", next="the same again")
        return {"ok": False, "state": "unknown", "error": no.error}
    return json.loads(text.split(b"\n")[0])


def stop(number, frame):
    raise Stopped(signal.Signals(number).name)


def background(args, ask, pipe):
    def tell(answer):
        with contextlib.suppress(OSError):  # the connection may be gone; what follows does not need it
            os.write(pipe, json.dumps({"ok": True, **answer}).encode() + b"\n")

    token = []

    def awaiting(answer):
        token.append(answer["token"])
        tell(answer)

    try:
        # An activation whose controller died puts the old release back in a while: then it is our turn.
        with alone(args.store, within=args.confirm + REVERT + COMMAND):
            try:
                answer = {"ok": True, **activate(args, ask, awaiting)}
            except Exception as error:  # after the confirmation, that a record cannot be written
                answer = {"ok": False, "error": as_refused(error, args.store).error}
                answer |= {"state": "unknown"} if token else {}
            if token:  # somebody waits for how it ended
                write_file(Records(args.store).outcome, json.dumps({"token": token[0], **answer}))
    except Exception as error:
        answer = {"ok": False, "error": as_refused(error, args.store).error}
    tell(answer)
    return 0


def confirmed(args):
    """Say that a new connection came through, and wait for the outcome."""
    records = Records(args.store)
    write_file(records.confirmation, args.token)
    until = time.monotonic() + args.within
    while True:
        alive = is_locked(switching(args.store)) and time.monotonic() < until
        outcome = read_record(records.outcome)
        if outcome.get("token") == args.token:
            return outcome
        if not alive:
            found = "it was killed, or never ended"
            raise Refused(args.store, "has no activation that waits for this", args.token, found, "the same again")
        time.sleep(WAIT)


def main(argv):
    parser = argparse.ArgumentParser(prog="switch")
    parser.add_argument("verb", choices=["activate", "check", "stays", "confirm", "recover"])
    parser.add_argument("--store", required=True)
    for option in ("--release", "--stack", "--override", "--project", "--service", "--token", "--previous", "--lease"):
        parser.add_argument(option, default="")
    parser.add_argument("--within", type=float, default=600)
    parser.add_argument("--soak", type=float, default=0)
    parser.add_argument("--confirm", type=float, default=60)
    parser.add_argument("--recreate", action="store_true")
    parser.add_argument("--signers", default=SIGNERS)
    args = parser.parse_args(argv)
    os.umask(0o022)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a lost connection is no reason to stop in the middle
    return print_answer(lambda: run(args), args.store)


def run(args):
    if args.verb == "activate":
        return detached(args, json.load(sys.stdin))
    if args.verb == "check":
        return check(args, json.load(sys.stdin))
    if args.verb == "stays":
        return stays(args, json.load(sys.stdin))
    if args.verb == "confirm":
        return confirmed(args)
    until = time.monotonic() + args.within
    while not engine_answers() and time.monotonic() < until:
        time.sleep(1)  # at boot the engine may still be on its way; to revert without it would freeze the host
    with alone(args.store, within=args.within):
        state = recover(Records(args.store))
        return {"recovered": state, "ok": state in (None, "active", "withdrawn")}
