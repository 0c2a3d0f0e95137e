"""Sets up a machine for the store: its directories, and on a host the push user, whose one key can write incoming/ alone.

    setup --store S [--user U --key KEY --from ADDRESS]

One JSON line on standard output: {"changed": […]}. A second run changes nothing.
"""

from __future__ import annotations

import argparse
import grp
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.remote.common.files import print_answer, read_text, write_file
from tasks.shared.errors import Refused

UNIT = """[Unit]
Description=Finish or undo a model switch that was interrupted (hf-offline)
Wants=docker.service
After=docker.service
RequiresMountsFor={script}

[Service]
Type=oneshot
ExecStart={script}

[Install]
WantedBy=multi-user.target
"""


MODES = {"incoming": 0o755, "taken": 0o700, "blobs": 0o755, "releases": 0o755, "state": 0o755, "tool": 0o755}


@dataclass(frozen=True)
class Pusher:
    """The user as whom the bastion pushes, its one public key, and the address that it may come from; "*" is any."""

    user: str
    key: str
    source: str


def setup(store: str, pusher: Pusher | None) -> dict[str, Any]:
    """Make the store's directories, and the push user where one is given. Return what was changed.

    Raise Refused where the store spans several filesystems.
    """
    os.makedirs(store, mode=0o755, exist_ok=True)
    changed = []
    for name, mode in MODES.items():
        path = os.path.join(store, name)
        if not os.path.isdir(path):
            os.mkdir(path)
            changed.append(name)
        os.chmod(path, mode)
    devices = {os.stat(os.path.join(store, name)).st_dev for name in MODES}
    if len(devices) > 1:
        raise Refused(store, "spans several filesystems", "one, as files are moved by rename", str(len(devices)))
    if pusher:
        changed += set_up_pusher(store, pusher) + set_up_recovery(store)
    return {"changed": changed}


def set_up_recovery(store: str) -> list[str]:
    """Let systemd finish or undo, at boot, a switch that a power cut interrupted. Return what was changed.

    Where no systemd runs, the machine's own start-up must run STORE/recover.
    """
    script, changed = os.path.join(store, "recover"), []
    words = f"#!/bin/sh\nexec python3 {os.path.abspath(sys.argv[0])} switch recover --store {store}\n"
    if read_text(script) != words:
        write_file(script, words, 0o755)
        changed.append("recover")
    unit = "/etc/systemd/system/hf-offline-recover.service"
    if os.path.isdir("/run/systemd/system") and read_text(unit) != UNIT.format(script=script):
        write_file(unit, UNIT.format(script=script))
        for command in (["systemctl", "daemon-reload"], ["systemctl", "enable", os.path.basename(unit)]):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise Refused(unit, "cannot be enabled", "systemctl to succeed", done.stderr.strip()[-200:])
        changed.append("unit")
    return changed


def set_up_pusher(store: str, pusher: Pusher) -> list[str]:
    """Make a user whose one key runs rrsync, write-only, in incoming/, and nothing else. Return what was changed.

    The user cannot change that itself. Raise Refused for a key or an address of another form, and for a powerful user.
    """
    refuse_odd_words(pusher)
    home = f"/var/lib/{pusher.user}"
    changed = []
    try:
        user = pwd.getpwnam(pusher.user)
    except KeyError:
        user = make_user(pusher.user, home)
        changed.append("user")
    groups = {group.gr_name for group in grp.getgrall() if pusher.user in group.gr_mem}
    if user.pw_uid == 0 or groups & {"sudo", "wheel"}:
        raise Refused(pusher.user, "may do more than push", "an unprivileged user", "root or sudo", "setting push_user")
    incoming = os.path.join(store, "incoming")
    os.chown(incoming, user.pw_uid, user.pw_gid)
    os.makedirs(f"{home}/.ssh", mode=0o755, exist_ok=True)
    rrsync = shutil.which("rrsync") or "rrsync"
    source = f'from="{pusher.source}",' if pusher.source != "*" else ""
    line = f'restrict,{source}command="{rrsync} -wo -no-del {incoming}" {pusher.key}\n'
    path = f"{home}/.ssh/authorized_keys"
    if read_text(path) != line:
        write_file(path, line)
        changed.append("key")
    return changed


def refuse_odd_words(pusher: Pusher) -> None:
    """Refuse a key or an address that is more than one. Both come from the bastion, which is not trusted: a line break in
    them would be a second key, without our limits."""
    if not re.fullmatch(r"ssh-ed25519 [A-Za-z0-9+/]+={0,2}", pusher.key):
        found = ascii(pusher.key[:80])
        raise Refused("push key", "is no plain public key", "ssh-ed25519 …", found, "look at the bastion")
    if not re.fullmatch(r"\*|[0-9A-Fa-f.:]+(/\d+)?", pusher.source):
        found = ascii(pusher.source[:80])
        raise Refused("push_from", "is no address", "an IP address or network, or *", found, "push_from")


def make_user(name: str, home: str) -> pwd.struct_passwd:
    """Create a system user without a password. Its account is not locked: sshd without PAM refuses keys of locked ones."""
    command = ["useradd", "--system", "--no-create-home", "-d", home, "-s", "/bin/sh", "-p", "*", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Refused(name, "cannot be created", "useradd to succeed", done.stderr.strip())
    return pwd.getpwnam(name)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="setup")
    parser.add_argument("--store", required=True)
    parser.add_argument("--user", default="")
    parser.add_argument("--key", default="")
    parser.add_argument("--from", dest="source", default="*")
    args = parser.parse_args(argv)
    os.umask(0o022)
    pusher = Pusher(args.user, args.key, args.source) if args.user else None
    return print_answer(lambda: setup(args.store, pusher), args.store)
