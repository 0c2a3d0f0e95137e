"""Activates a release on a host, alone: journal, switch, health, probe, confirm; else it puts the old one back by itself.

    switch activate --store S --release ID --stack DIR --override NAME --project P --service N --deadline SEC [--recreate]
                    (stdin: {"who", "why", "probe", "expect_env"})
    switch recover  --store S

Nobody needs to be connected: a controller that dies, a cut line or a deadline end in the new release, healthy, or in the
old one. Every step stands in journal.jsonl before it is done; a run that was killed is finished by the next one. A revert
that fails freezes the host: nothing more is tried, and `state/frozen` says why. One JSON line on standard output.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import time
import urllib.request

from release import Refused

MARKER = "# written by hf-offline"
STACK_FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")


class Stopped(Exception):
    """A signal asked the activation to end; it reverts first."""


# ---------------------------------------------------------------------------------------------------- small, careful


def sync(folder):
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def write(path, text):
    staged = f"{path}.new"
    with open(staged, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(staged, path)
    sync(os.path.dirname(path))


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def remove(path):
    if os.path.lexists(path):
        os.unlink(path)
        sync(os.path.dirname(path))


class Host:
    """One store and one stack: the paths, the journal, and the commands of Docker and Compose."""

    def __init__(self, store, stack="", override="", project="", service=""):
        self.store, self.stack, self.project, self.service = store, stack, project, service
        self.override = os.path.join(stack, override)
        self.before = os.path.join(store, "state", "before.override.yaml")
        self.pending = os.path.join(store, "state", "pending")
        self.frozen = os.path.join(store, "state", "frozen")

    def journal(self, step, **more):
        """One line before each step; on disk before the step begins."""
        line = json.dumps({"time": time.strftime("%FT%TZ", time.gmtime()), "step": step, **more}, ensure_ascii=True)
        with open(os.path.join(self.store, "journal.jsonl"), "a", encoding="ascii") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def record(self, name):
        return (read(os.path.join(self.store, name)) or "").strip() or None

    def docker(self, *words, timeout=120):
        try:
            return subprocess.run(["docker", *words], capture_output=True, text=True, errors="replace", timeout=timeout)
        except subprocess.TimeoutExpired as late:
            return subprocess.CompletedProcess(late.cmd, 124, "", f"no answer within {timeout} s")

    def compose(self, *words, timeout=120):
        # The very files that a person's `docker compose up -d` in that directory would take.
        base = ["compose", "-p", self.project, "--project-directory", self.stack]
        return self.docker(*base, *self.files(), *words, timeout=timeout)

    def files(self, override=None):
        name = next(n for n in STACK_FILES if os.path.isfile(os.path.join(self.stack, n)))
        override = override or self.override
        return ["-f", os.path.join(self.stack, name), *(["-f", override] if os.path.exists(override) else [])]

    def container(self):
        """The service's container as `docker inspect` shows it, or None."""
        labels = [
            f"label=com.docker.compose.project={self.project}",
            f"label=com.docker.compose.service={self.service}",
        ]
        labels.append("label=com.docker.compose.oneoff=False")
        found = self.docker("ps", "-aq", "--no-trunc", *(word for label in labels for word in ("--filter", label)))
        if found.returncode:
            raise Refused(
                "docker", "does not answer", found=found.stderr.strip()[-200:], next="systemctl status docker"
            )
        ids = found.stdout.split()
        return json.loads(self.docker("inspect", ids[0]).stdout)[0] if ids else None

    def logs(self):
        """The last lines of the service, without what a terminal would obey."""
        text = self.compose("logs", "--no-color", "--no-log-prefix", "--tail", "40", self.service).stdout[-3000:]
        return "".join(c for c in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text) if c == "\n" or c.isprintable())


# ---------------------------------------------------------------------------------------------------------- checking


def check_before(host, release_id, candidate):
    """Everything that can be known before anything changes: release, image, override, Compose's own opinion."""
    root = os.path.join(host.store, "releases", release_id)
    if not os.path.isdir(os.path.join(root, "hub")):
        raise Refused(root, "is not built", "an admitted release", "no directory", "deploy.py")
    if read(candidate) is None:
        raise Refused(candidate, "does not exist", "an override whose smoke test passed", "no file", "deploy.py")
    in_place = read(host.override)
    if in_place is not None and not in_place.startswith(MARKER):
        raise Refused(host.override, "is not ours", MARKER, in_place[:40], "move what it says into the stack's file")
    done = host.docker(
        "compose", "-p", host.project, "--project-directory", host.stack, *host.files(candidate), "config", "-q"
    )
    if done.returncode:
        raise Refused(
            candidate, "is refused by docker compose config", found=done.stderr.strip()[-400:], next="group_data"
        )


def wait_healthy(host, deadline, started):
    """The container once it is healthy (or runs, where it has no health check); Refused on exit, restart or deadline."""
    until = time.monotonic() + deadline
    while True:
        found = host.container()
        state = (found or {}).get("State", {})
        health = (state.get("Health") or {}).get("Status")
        if (
            found
            and state["Status"] == "running"
            and (health == "healthy" or (health is None and time.monotonic() - started > 5))
        ):
            return found
        if found and (found["RestartCount"] or state["Status"] in ("exited", "dead")):
            what = f"exited with code {state['ExitCode']}, {found['RestartCount']} restarts"
            raise Refused(host.service, what, "a healthy container", host.logs()[-600:])
        if health == "unhealthy":
            raise Refused(host.service, "is unhealthy", "healthy", last_check(state) or host.logs()[-600:])
        if time.monotonic() > until:
            found_state = health or state.get("Status") or "no container"
            raise Refused(
                host.service, f"is not healthy after {deadline} s", "healthy", f"{found_state}: {host.logs()[-400:]}"
            )
        time.sleep(0.3)


def last_check(state):
    log = (state.get("Health") or {}).get("Log") or [{}]
    return (log[-1].get("Output") or "").strip()[-300:]


def check_inside(host, found, release_id, expect_env):
    """What runs is what was proven: image, mount and environment of the very process."""
    tag = json.loads(read(os.path.join(host.store, "releases", release_id, "image", "manifest.json")))[0]["RepoTags"][0]
    wanted = host.docker("image", "inspect", "-f", "{{.Id}}", tag).stdout.strip()
    if found["Image"] != wanted:
        raise Refused(host.service, "runs another image", wanted, found["Image"])
    source = os.path.join(host.store, "releases", release_id)
    mounts = {mount["Destination"]: mount.get("Source") for mount in found["Mounts"]}
    if mounts.get(expect_env.get("HF_HOME", "")) != source:
        raise Refused(host.service, "does not have the release mounted", source, str(mounts))
    with open(f"/proc/{found['State']['Pid']}/environ", "rb") as file:
        pairs = [entry.partition(b"=") for entry in file.read().split(b"\0")]
    inside = {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, _, value in pairs}
    wrong = {key: inside.get(key) for key, value in expect_env.items() if inside.get(key) != value}
    if wrong:
        raise Refused(
            host.service, "has another environment in its process", str({k: expect_env[k] for k in wrong}), str(wrong)
        )


def vectors(entry):
    """[[float]] of a golden: {"shape": [n, 128], "f16": base64, little-endian half floats}."""
    rows, width = entry["shape"]
    flat = struct.unpack(f"<{rows * width}e", base64.b64decode(entry["f16"]))
    return [flat[i * width : (i + 1) * width] for i in range(rows)]


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b))  # noqa: B905 - Python 3.9
    return dot / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b)) or 1.0)


def filled(body, query):
    """The operator's body with {query} in its strings."""
    if isinstance(body, dict):
        return {key: filled(value, query) for key, value in body.items()}
    if isinstance(body, list):
        return [filled(value, query) for value in body]
    return body.replace("{query}", query) if isinstance(body, str) else body


def probe(host, release_id, asked):
    """Embed the golden queries through the running service; -> lowest mean cosine. None asked for: not embedded."""
    if not asked:
        return None
    goldens = json.loads(read(os.path.join(host.store, "state", release_id, "goldens.json")) or "{}")
    lowest = 1.0
    for golden in list((goldens.get("classes") or {}).values())[:1]:
        for number, query in enumerate(golden["queries"]):
            request = urllib.request.Request(asked["url"], json.dumps(filled(asked["body"], query)).encode())
            request.add_header("Content-Type", "application/json")
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    found = json.loads(answer.read())
                for key in asked["answer"].split("."):
                    found = found[int(key)] if isinstance(found, list) else found[key]
                theirs = vectors(golden["vectors"][f"query{number}"])
                if len(found) != len(theirs):
                    raise ValueError(f"{len(found)} vectors, the goldens have {len(theirs)}")
                lowest = min(lowest, sum(map(cosine, found, theirs)) / len(theirs))
            except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
                found = f"{type(error).__name__}: {error}"
                raise Refused(
                    asked["url"], "does not embed", "vectors as the probe says", found, "setting probe"
                ) from None
    if lowest < asked.get("at_least", 0.99):
        raise Refused(
            asked["url"],
            "embeds otherwise than the goldens",
            f"cosine ≥ {asked.get('at_least', 0.99)}",
            f"{lowest:.5f}",
        )
    return round(lowest, 6)


# ----------------------------------------------------------------------------------------------------------- switching


def up(host, timeout, recreate=False):
    more = ["--force-recreate"] if recreate else []
    done = host.compose("up", "-d", "--no-build", "--pull", "never", *more, host.service, timeout=timeout)
    if done.returncode:
        raise Refused("docker compose up", "failed", "success", done.stderr.strip()[-500:], "look at the stack's file")


def activate(host, args, ask):
    """Old or new, complete; the answer says which."""
    if read(host.frozen) is not None:
        raise Refused(
            host.frozen,
            "says that this host is frozen",
            "no such file",
            read(host.frozen)[:200],
            "mend, then remove it",
        )
    recovered = recover(host)
    candidate = os.path.join(host.store, "state", args.release, "compose.override.yaml")
    check_before(host, args.release, candidate)
    old, was = host.record("current"), host.container()
    running = bool(was) and was["State"]["Status"] == "running"
    intent = {"from": old, "to": args.release, "who": ask.get("who"), "why": ask.get("why"), "deadline": args.deadline}
    intent |= {key: getattr(args, key) for key in ("stack", "override", "project", "service")}
    intent |= {"had_container": bool(was), "had_override": read(host.override) is not None, "was_running": running}
    host.journal("begin", **{key: intent[key] for key in ("from", "to", "who", "why")})
    if intent["had_override"]:
        write(host.before, read(host.override))
    write(host.pending, json.dumps(intent))
    started = time.monotonic()
    try:
        host.journal("switch", to=args.release)
        write(host.override, read(candidate))
        up(host, args.deadline, args.recreate)
        found = wait_healthy(host, max(1, args.deadline - (time.monotonic() - started)), time.monotonic())
        host.journal("check", to=args.release, container=found["Id"])
        check_inside(host, found, args.release, ask.get("expect_env") or {})
        embedded = probe(host, args.release, ask.get("probe"))
    except (Refused, Stopped, OSError) as error:
        error = (
            error.error
            if isinstance(error, Refused)
            else {"where": "activate", "what": f"{type(error).__name__}: {error}"}
        )
        logs = host.logs()
        state = revert(host, intent)
        return {"ok": False, "state": state, "error": {**error, "where": f"{state}: {error['where']}"}, "logs": logs}
    confirm(host, intent)
    changed = not was or was["Id"] != found["Id"] or old != args.release
    seconds = round(time.monotonic() - started, 2)
    return {
        "changed": changed,
        "from": old,
        "to": args.release,
        "container": found["Id"],
        "seconds": seconds,
        "probe": embedded,
        "recovered": recovered,
    }


def confirm(host, intent):
    host.journal("confirm", to=intent["to"])
    if intent["from"] != intent["to"]:
        write(os.path.join(host.store, "previous"), f"{intent['from'] or ''}\n")
    write(os.path.join(host.store, "current"), f"{intent['to']}\n")
    remove(host.pending)


def revert(host, intent):
    """Put back what was; -> "withdrawn", or "frozen" when that fails too: then nothing more is tried."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    host.journal("revert", to=intent["from"])
    # A short deadline is for the new release; the old one has been healthy before and may take its time.
    deadline = max(intent["deadline"], 300)
    try:
        if intent["had_override"]:
            write(host.override, read(host.before))
        else:
            remove(host.override)
        if intent["was_running"]:
            up(host, deadline)
            wait_healthy(host, deadline, time.monotonic())
        elif intent["had_container"]:
            up(host, deadline)
            host.compose("stop", host.service)
        else:
            host.compose("rm", "--stop", "--force", host.service)
    except (Refused, OSError, StopIteration) as error:
        why = {"why": f"reverting to {intent['from']} failed: {error}", "at": time.strftime("%FT%TZ", time.gmtime())}
        write(host.frozen, json.dumps(why))
        host.journal("frozen", **why)
        return "frozen"
    host.journal("withdrawn", to=intent["from"])
    remove(host.pending)
    return "withdrawn"


def recover(host):
    """Finish what a killed run left: its intent stands in state/pending; anything not confirmed is put back."""
    text = read(host.pending)
    if text is None:
        return None
    intent = json.loads(text)
    there = Host(host.store, intent["stack"], intent["override"], intent["project"], intent["service"])
    if there.record("current") == intent["to"] and intent["from"] != intent["to"]:
        confirm(there, intent)
        return "confirmed"
    return revert(there, intent)


def main(argv):
    parser = argparse.ArgumentParser(prog="switch")
    parser.add_argument("verb", choices=["activate", "recover"])
    parser.add_argument("--store", required=True)
    for option in ("--release", "--stack", "--override", "--project", "--service"):
        parser.add_argument(option, default="")
    parser.add_argument("--deadline", type=int, default=600)
    parser.add_argument("--recreate", action="store_true")
    args = parser.parse_args(argv)
    os.umask(0o022)
    host = Host(args.store, args.stack, args.override, args.project, args.service)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a lost connection is no reason to stop in the middle

    def stop(number, frame):
        raise Stopped(signal.Signals(number).name)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with open(os.path.join(args.store, ".switch.lock"), "a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.truncate(0)
            lock.write(f"pid {os.getpid()} since {time.strftime('%FT%TZ', time.gmtime())}")
            lock.flush()
            answer = (
                activate(host, args, json.load(sys.stdin)) if args.verb == "activate" else {"recovered": recover(host)}
            )
        except BlockingIOError:
            lock.seek(0)
            answer = {
                "ok": False,
                "error": Refused(args.store, "is being switched", "nobody", lock.read(80), "wait for it").error,
            }
        except Refused as no:
            answer = {"ok": False, "error": no.error}
    answer = {"ok": True, **answer}
    print(json.dumps(answer, ensure_ascii=True, sort_keys=True), flush=True)
    return 0 if answer["ok"] else 1
