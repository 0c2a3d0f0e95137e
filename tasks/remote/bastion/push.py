"""Pushes blobs from the bastion's store to one host's incoming/, by rsync over ssh; the only transport of bytes.

    push key    --store S                                   make the push key once; prints the public half
    push source --to ADDRESS                                the address that the bastion has towards a host
    push idle   --store S --host NAME               wait until no earlier push to this host runs any more
    push send   --store S --host NAME --to U@ADDRESS --port P --alias A [--limit KIB] --within SEC
                (stdin: {"blobs": {sha256: size}, "known_hosts": text})
    push status --store S                                   how far each running push is, for the live display

`send` retries what a network does, resumes in mid-file, and reports what went over the wire. One JSON line each.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import socket
import subprocess
import sys
import time

from tasks.remote.common.files import hold_lock, print_answer, write_file
from tasks.shared.errors import Refused

# aes128-gcm is nearly twice as fast as ssh's default; --inplace without -W resumes in mid-file, and a killed receiver
# leaves no dotfile. -t lets a whole file that is already there be skipped; admit's hash judges it all the same.
SSH = "ssh -F none -c aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com -o BatchMode=yes \
-o IdentitiesOnly=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=15 -o ServerAliveInterval=10 \
-o ServerAliveCountMax=3 -o LogLevel=ERROR"
RSYNC = ["rsync", "-t", "--inplace", "--no-whole-file", "--chmod=F644", "--timeout=60", "--stats", "--info=progress2"]
# rsync's manual, EXIT VALUES: what a network or a rebooting host causes. The rest is wrong for ever.
PASSING = {10, 12, 20, 23, 24, 30, 35, 255}
PROGRESS = re.compile(rb"^\s*([\d,]+)\s+\d+%\s")
STATS = {
    "moved": re.compile(r"Literal data: ([\d,]+)"),  # file data that went over the wire
    "matched": re.compile(r"Matched data: ([\d,]+)"),  # file data that the host's own unfinished files held
    "sent": re.compile(r"Total bytes sent: ([\d,]+)"),
}
# ssh's own words for what no second try mends.
FINAL = ("Permission denied", "Host key verification failed", "IDENTIFICATION HAS CHANGED", "No space left")


def deserted():
    """Whether nobody reads our answer any more: the controller died. Its push ends too; the next run resumes it."""
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))


def number(text):
    return int(text.replace(",", ""))


def folder(store):
    path = os.path.join(store, "push")
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def key(store):
    path = os.path.join(folder(store), "id_ed25519")
    with hold_lock(f"{path}.lock", "makes its push key", within=60):  # all hosts of a first deploy ask at once
        if not os.path.exists(path):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "hf-push", "-f", path]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    with open(f"{path}.pub", encoding="ascii") as file:
        return {"key": " ".join(file.read().split()[:2])}


def source(address):
    """The local address of a route to `address`; a connected datagram socket sends nothing."""
    family, kind, proto, _, where = socket.getaddrinfo(address, 22, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, proto) as probe:
        probe.connect(where)
        return {"source": probe.getsockname()[0]}


def rsync(args, blobs, known_hosts, status, left):
    """One run of rsync -> (exit code, its statistics in bytes, its last words)."""
    ssh = f"{SSH} -p {args.port} -i {folder(args.store)}/id_ed25519 -o UserKnownHostsFile={known_hosts}"
    ssh += f" -o HostKeyAlias={args.alias}"
    command = ["timeout", "-k", "5", str(int(left)), *RSYNC, f"--bwlimit={args.limit}", "-e", ssh, "--files-from=-"]
    command += ["--", f"{args.store}/blobs/", f"{args.to}:."]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process.stdin.write("".join(f"{sha256}\n" for sha256 in sorted(blobs)).encode())
    process.stdin.close()
    words, line, moved, told, started = [], b"", 0, 0.0, time.monotonic()
    total = sum(blobs.values())
    while chunk := os.read(process.stdout.fileno(), 65536):
        if deserted():
            process.terminate()
            process.wait()
            sys.exit(1)
        *lines, line = re.split(rb"[\r\n]", line + chunk)
        for text in lines:
            if match := PROGRESS.match(text):
                moved = number(match.group(1).decode())
                if time.monotonic() - told > 0.5:
                    told = time.monotonic()
                    seconds = time.monotonic() - started
                    write_file(
                        status, json.dumps({"host": args.host, "done": moved, "total": total, "seconds": seconds})
                    )
            elif text.strip():
                words.append(text.decode("utf-8", "replace"))
    code = process.wait()
    said = "\n".join(words)
    found = {name: pattern.search(said) for name, pattern in STATS.items()}
    # Without --stats (a cut connection) the progress is an upper bound: it counts what was skipped, too.
    return (
        code,
        {name: number(m.group(1)) if m else moved if name != "matched" else 0 for name, m in found.items()},
        words,
    )


def alone(store, host):
    """One push to a host at a time; a deserted one ends within seconds of its controller."""
    return hold_lock(os.path.join(folder(store), f"{host}.lock"), f"pushes to {host} already", within=60)


def send(args, document):
    """Every blob of `document` is in incoming/ afterwards, as far as rsync can tell; admit proves it."""
    blobs, started = document["blobs"], time.monotonic()
    status = os.path.join(folder(args.store), f"{args.host}.json")
    known_hosts = os.path.join(folder(args.store), f"{args.host}.known_hosts")
    complete(args.store, blobs)
    with alone(args.store, args.host):
        with open(known_hosts, "w", encoding="utf-8") as file:
            file.write(document["known_hosts"])
        sums, tries, idle = dict.fromkeys(STATS, 0), 0, 0
        while True:
            tries += 1
            left = args.within - (time.monotonic() - started)
            if left < 1:
                what = f"push took longer than {args.within} s"
                raise Refused(args.host, what, found=f"{tries - 1} tries", next="setting push_deadline")
            code, found, words = rsync(args, blobs, known_hosts, status, left)
            sums = {name: count + found[name] for name, count in sums.items()}
            if code == 0:
                break
            complete(args.store, blobs)  # somebody may have taken them away meanwhile
            idle = 0 if found["moved"] else idle + 1
            last = [w for w in words if "rsync error" not in w and "rsync: connection" not in w][-3:] or words[-3:]
            final = any(phrase in word for phrase in FINAL for word in words)
            if code not in PASSING or final or idle == 5:
                where = f"{args.host} ({args.to} port {args.port})"
                raise Refused(where, f"rsync failed with code {code}", found="; ".join(last))
            print(f"{args.host}: rsync code {code}, try {tries}: {'; '.join(last)}", file=sys.stderr)
            time.sleep(min(2**tries, 30, max(0, left)))
        os.path.exists(status) and os.unlink(status)
    return {**sums, "tries": tries, "seconds": time.monotonic() - started}


def complete(store, blobs):
    absent = [s for s, size in blobs.items() if not whole(os.path.join(store, "blobs", s), size)]
    if absent:
        what, mend = (
            f"the bastion lacks {len(absent)} blobs",
            "the deploy again, with the bastion in its --limit: it fetches",
        )
        raise Refused(store, what, "all of the release", absent[0], mend)


def whole(path, size):
    return os.path.isfile(path) and os.path.getsize(path) == size


def status(store):
    """{host: {host, done, total, seconds}} of the pushes that run now (bytes; seconds since this try began)."""
    running = {}
    for name in os.listdir(folder(store)):
        if name.endswith(".json"):
            with open(os.path.join(folder(store), name), encoding="ascii") as file:
                entry = json.load(file)
            running[entry["host"]] = entry
    return {"running": running}


def main(argv):
    parser = argparse.ArgumentParser(prog="push")
    parser.add_argument("verb", choices=["key", "source", "idle", "send", "status"])
    for option in ("--store", "--host", "--to", "--alias"):
        parser.add_argument(option)
    parser.add_argument("--port", type=int, default=22)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--within", type=int, default=14400)
    args = parser.parse_args(argv)
    os.umask(0o077)
    return print_answer(lambda: run(args), args.store)


def run(args):
    if args.verb == "send":
        return send(args, json.load(sys.stdin))
    if args.verb == "idle":
        with alone(args.store, args.host):
            return {}
    if args.verb == "source":
        return source(args.to)
    return key(args.store) if args.verb == "key" else status(args.store)
