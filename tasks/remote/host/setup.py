"""Sets up a machine for the store: its directories, and on a host the push user whose one key can write incoming/ alone.

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


def setup(args):
    """The store's directories, and with --user the push user, who can write incoming/ and nothing else."""
    os.makedirs(args.store, mode=0o755, exist_ok=True)
    changed = []
    modes = {"incoming": 0o755, "taken": 0o700, "blobs": 0o755, "releases": 0o755, "state": 0o755, "tool": 0o755}
    for name, mode in modes.items():
        path = os.path.join(args.store, name)
        if not os.path.isdir(path):
            os.mkdir(path)
            changed.append(name)
        os.chmod(path, mode)
    devices = {os.stat(os.path.join(args.store, name)).st_dev for name in modes}
    if len(devices) > 1:
        raise Refused(args.store, "spans several filesystems", "one, as files are moved by rename", str(len(devices)))
    if args.user:
        changed += push_user(args) + at_boot(args.store)
    return {"changed": changed}


def at_boot(store):
    """A switch that a power cut interrupted is finished or undone at boot: by systemd, or by whatever runs S/recover."""
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


def push_user(args):
    """`args.user` with one key that can only run rrsync, write-only, below incoming/. It cannot change that itself."""
    # Both come from the bastion, which is not trusted: a line break here would be a second key, without our limits.
    if not re.fullmatch(r"ssh-ed25519 [A-Za-z0-9+/]+={0,2}", args.key):
        raise Refused(
            "push key", "is no plain public key", "ssh-ed25519 …", ascii(args.key[:80]), "look at the bastion"
        )
    if not re.fullmatch(r"\*|[0-9A-Fa-f.:]+(/\d+)?", args.source):
        raise Refused(
            "push_from", "is no address", "an IP address or network, or *", ascii(args.source[:80]), "push_from"
        )
    home = f"/var/lib/{args.user}"
    changed = []
    try:
        user = pwd.getpwnam(args.user)
    except KeyError:
        # '*' is no password and, unlike '!', no locked account: sshd without PAM refuses keys of locked ones.
        command = ["useradd", "--system", "--no-create-home", "-d", home, "-s", "/bin/sh", "-p", "*", args.user]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Refused(args.user, "cannot be created", "useradd to succeed", done.stderr.strip()) from None
        user = pwd.getpwnam(args.user)
        changed.append("user")
    if user.pw_uid == 0 or any(
        args.user in group.gr_mem for group in grp.getgrall() if group.gr_name in ("sudo", "wheel")
    ):
        raise Refused(args.user, "may do more than push", "an unprivileged user", "root or sudo", "setting push_user")
    incoming = os.path.join(args.store, "incoming")
    os.chown(incoming, user.pw_uid, user.pw_gid)
    os.makedirs(f"{home}/.ssh", mode=0o755, exist_ok=True)
    rrsync = shutil.which("rrsync") or "rrsync"
    source = f'from="{args.source}",' if args.source != "*" else ""
    line = f'restrict,{source}command="{rrsync} -wo -no-del {incoming}" {args.key}\n'
    path = f"{home}/.ssh/authorized_keys"
    if read_text(path) != line:
        write_file(path, line)
        changed.append("key")
    return changed


def main(argv):
    parser = argparse.ArgumentParser(prog="setup")
    parser.add_argument("--store", required=True)
    parser.add_argument("--user", default="")
    parser.add_argument("--key", default="")
    parser.add_argument("--from", dest="source", default="*")
    args = parser.parse_args(argv)
    os.umask(0o022)
    return print_answer(lambda: setup(args), args.store)
