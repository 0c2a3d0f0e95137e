"""One run of rsync over ssh: blobs from the store to one host's incoming/, with its progress and its statistics."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, cast

from tasks.remote.common.files import write_file

# aes128-gcm is nearly twice as fast as ssh's default cipher.
SSH = "ssh -F none -c aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com -o BatchMode=yes \
-o IdentitiesOnly=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=15 -o ServerAliveInterval=10 \
-o ServerAliveCountMax=3 -o LogLevel=ERROR"
# --inplace without -W resumes in mid-file, and a killed receiver leaves no dotfile. With -t, a file that is there in its
# size and time is skipped; admit judges it by its hash all the same.
RSYNC = ("rsync", "-t", "--inplace", "--no-whole-file", "--chmod=F644", "--timeout=60", "--stats", "--info=progress2")
PROGRESS = re.compile(rb"^\s*([\d,]+)\s+\d+%\s")
STATISTICS = {
    "moved": re.compile(r"Literal data: ([\d,]+)"),
    "matched": re.compile(r"Matched data: ([\d,]+)"),
    "sent": re.compile(r"Total bytes sent: ([\d,]+)"),
}
NOTE_INTERVAL = 0.5  # seconds between two notes of the progress


@dataclass(frozen=True)
class Target:
    """Whom to push to. host: its name in the inventory. to: user@address. alias: its name in known_hosts. limit: KiB/s, 0 is none."""

    host: str
    to: str
    port: int
    alias: str
    limit: int


@dataclass(frozen=True)
class Paths:
    """Files of the bastion: the blobs, the push key, the host keys of this target, and the note of its progress."""

    blobs: str
    key: str
    known_hosts: str
    progress: str


@dataclass(frozen=True)
class Attempt:
    """How one run of rsync ended: its exit code, bytes by kind, and the lines that it printed.

    moved: file data that crossed. matched: file data that the host's unfinished files had. sent: everything that crossed.
    """

    code: int
    moved: int
    matched: int
    sent: int
    lines: list[str]


def rsync(target: Target, paths: Paths, blobs: Mapping[str, int], within: float) -> Attempt:
    """Run rsync once for {sha256: size}, for `within` seconds at most. If the controller is gone, this process ends."""
    process = start(target, paths, blobs, within)
    output = cast("IO[bytes]", process.stdout).fileno()
    started, noted = time.monotonic(), 0.0
    words, line, moved = [], b"", 0
    while chunk := os.read(output, 65536):
        if controller_is_gone():
            process.terminate()
            process.wait()
            sys.exit(1)
        *lines, line = re.split(rb"[\r\n]", line + chunk)
        for text in lines:
            match = PROGRESS.match(text)
            if match:
                moved = number(match.group(1).decode())
            elif text.strip():
                words.append(text.decode("utf-8", "replace"))
        if moved and time.monotonic() - noted > NOTE_INTERVAL:
            noted = time.monotonic()
            note = {"host": target.host, "done": moved, "total": sum(blobs.values()), "seconds": noted - started}
            write_file(paths.progress, json.dumps(note))
    return ended(process.wait(), words, moved)


def start(target: Target, paths: Paths, blobs: Mapping[str, int], within: float) -> subprocess.Popen[bytes]:
    """Start rsync, and hand it the names of the blobs."""
    shell = f"{SSH} -p {target.port} -i {paths.key} -o UserKnownHostsFile={paths.known_hosts} -o HostKeyAlias={target.alias}"
    command = ["timeout", "-k", "5", str(int(within)), *RSYNC, f"--bwlimit={target.limit}", "-e", shell]
    command += ["--files-from=-", "--", f"{paths.blobs}/", f"{target.to}:."]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with cast("IO[bytes]", process.stdin) as names:
        names.write("".join(f"{sha256}\n" for sha256 in sorted(blobs)).encode())
    return process


def ended(code: int, words: list[str], moved: int) -> Attempt:
    """The run by what rsync said. Without statistics, as after a cut connection, `moved` (the progress) is an upper bound."""
    said = "\n".join(words)
    found = {name: pattern.search(said) for name, pattern in STATISTICS.items()}
    counts = {name: number(match.group(1)) for name, match in found.items() if match}
    return Attempt(code, counts.get("moved", moved), counts.get("matched", 0), counts.get("sent", moved), words)


def controller_is_gone() -> bool:
    """Whether the reader of our standard output has ended. Then the push ends too, and the next run resumes it."""
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))


def number(text: str) -> int:
    """A number as rsync prints it: with commas."""
    return int(text.replace(",", ""))
