"""A hub, a bastion and GPU hosts in containers: real sshd, real rsync, a real Docker Engine and Compose on each.

GPU hosts sit on an `--internal` network alone; the bastion is on both. `up` changes nothing that is there already.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from tests.lab import images, machine
from tests.lab.images import BACKEND, HERE, HOST, LIGHT, answers, run
from tests.lab.machine import wait

STATE = HERE / "state"
BESIDE = Path("/var/lib/lab-beside")  # the second lab's engine: tests/lab/beside.py
WAN, AIRGAP = ("lab-wan", "10.77.1"), ("lab-airgap", "10.77.2")
HUB = f"{WAN[1]}.5"
BASTION_WAN, BASTION = f"{WAN[1]}.10", f"{AIRGAP[1]}.10"
SERVER = """
[req]
distinguished_name = dn
[dn]
[ca]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = CA:false
subjectAltName = DNS:lab-hub, IP:{hub}
authorityKeyIdentifier = keyid
"""


def gpu(number: int) -> tuple[str, str, int]:
    """(name, address, ssh port) of a GPU host; the second one is unlike the others: user ops, another port, another path, containerd's image store."""
    return f"lab-gpu{number}", f"{AIRGAP[1]}.{10 + number}", 2222 if number == 2 else 22


def keys() -> None:
    """The operator's key, host keys by name, the hub's certificate by a lab CA: made once, git-ignored."""
    for name in ["id_ed25519", *(f"host_{n}" for n in ["lab-bastion", *(gpu(i)[0] for i in range(1, 5))])]:
        if not (STATE / name).exists():
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab {name}", "-f", STATE / name)
    if not (STATE / "hub.pem").exists():
        (STATE / "openssl.cnf").write_text(SERVER.format(hub=HUB))
        config, days = STATE / "openssl.cnf", ("-days", 3650)
        new = ("openssl", "req", "-config", config, "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
        ca = ("-keyout", STATE / "ca.key", "-out", STATE / "ca.pem")
        run(*new, "-x509", *days, "-subj", "/CN=Lab CA", "-extensions", "ca", *ca)
        run(*new, "-subj", "/CN=lab-hub", "-keyout", STATE / "hub.key", "-out", STATE / "hub.csr")
        sign = (
            "openssl",
            "x509",
            "-req",
            "-in",
            STATE / "hub.csr",
            "-CA",
            STATE / "ca.pem",
            "-CAkey",
            STATE / "ca.key",
        )
        extensions = ("-extfile", config, "-extensions", "server")
        run(*sign, "-CAcreateserial", *days, *extensions, "-out", STATE / "hub.pem")
    known = [("lab-bastion", BASTION, 22), *(gpu(i) for i in range(1, 5))]
    lines = []
    for name, address, port in known:
        public = " ".join((STATE / f"host_{name}.pub").read_text().split()[:2])
        lines.append(f"{address if port == 22 else f'[{address}]:{port}'} {public}\n")
    (STATE / "known_hosts").write_text("".join(lines))
    jump = f"Host 10.77.2.12\n  ProxyJump root@{BASTION}:22\nHost *\n"
    jump += (
        f"  IdentityFile {STATE}/id_ed25519\n  UserKnownHostsFile {STATE}/known_hosts\n  StrictHostKeyChecking yes\n"
    )
    (STATE / "ssh_config").write_text(jump)


def powers() -> list[str]:
    """`--privileged` by name: every capability that this machine may give, and what an engine inside a container needs."""
    status = Path("/proc/self/status").read_text()
    bounding = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapBnd")), 16)
    # linux/capability.h; CAP_SYS_RESOURCE (24) and what lets a container leave its room are not asked for.
    wanted = {
        "NET_ADMIN": 12,
        "NET_RAW": 13,
        "SYS_CHROOT": 18,
        "SYS_PTRACE": 19,
        "SYS_ADMIN": 21,
        "SYS_NICE": 23,
        "MKNOD": 27,
        "AUDIT_WRITE": 29,
        "SETFCAP": 31,
        "MAC_ADMIN": 33,
        "SYSLOG": 34,
        "DAC_READ_SEARCH": 2,
        "LINUX_IMMUTABLE": 9,
        "IPC_LOCK": 14,
    }
    flags = [f"--cap-add={name}" for name, bit in wanted.items() if bounding >> bit & 1]
    for option in ("seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined"):
        flags += ["--security-opt", option]
    return [*flags, "--device-cgroup-rule", "a *:* rwm"]


def networks() -> None:
    for (name, prefix), more in ((WAN, []), (AIRGAP, ["--internal"])):
        if not answers("docker", "network", "inspect", name):
            run("docker", "network", "create", "--subnet", f"{prefix}.0/24", "--gateway", f"{prefix}.1", *more, name)


def owner() -> str:
    """Which clone a lab belongs to: containers hold this one's keys."""
    return images.hashed(STATE / "id_ed25519.pub")


def running(name: str) -> bool:
    """Whether the container runs; one that stopped is started again (its disk is as it was: a power cut)."""
    template = '{{.State.Running}} {{.State.Paused}} {{index .Config.Labels "lab.owner"}}'
    found = subprocess.run(["docker", "inspect", "-f", template, name], capture_output=True, text=True)
    if found.returncode == 0 and found.stdout.split()[-1] != owner():
        raise SystemExit(f"lab: {name} belongs to another clone. Run there or here first: python3 -m tests.lab down")
    state = found.stdout.split()[:2]
    if found.returncode == 0 and state != ["true", "false"]:
        run("docker", "unpause" if state[1] == "true" else "start", name)
    return found.returncode == 0


def names(name: str, network: str, address: str) -> list[str]:
    """A lab machine's names and address, and whose it is."""
    words = ["--name", name, "--hostname", name, "--network", network, "--ip", address]
    return [*words, "--label", f"lab.owner={owner()}"]


def start_hub() -> None:
    if running("lab-hub"):
        return
    run("docker", "create", *names("lab-hub", WAN[0], HUB), "-e", "ROLE=hub", "-v", "lab-hub-data:/lab/data", HOST)
    for path in sorted(HERE.glob("hub*.py")):
        run("docker", "cp", path, f"lab-hub:/lab/{path.name}")
    staged = STATE / "keys"
    staged.mkdir(exist_ok=True)
    for name in ("hub.pem", "hub.key"):
        (staged / name).write_bytes((STATE / name).read_bytes())
    run("docker", "cp", staged, "lab-hub:/lab/keys")
    run("docker", "start", "lab-hub")


def start_host(name: str, address: str, port: int, network: str) -> None:
    if running(name):
        return
    kind = {"ROLE": "host", "SSH_PORT": port, "CONTAINERD_STORE": str(port == 2222).lower()}
    kind["LIVE_RESTORE"] = str(name == "lab-gpu1").lower()  # two services run there in the end
    role = [word for key, value in kind.items() for word in ("-e", f"{key}={value}")]
    disks = ("-v", f"{name}-docker:/var/lib/docker", "--tmpfs", "/run")
    run("docker", "create", *names(name, network, address), *powers(), *role, *disks, HOST)
    run("docker", "cp", STATE / f"host_{name}", f"{name}:/etc/ssh/ssh_host_ed25519_key")
    run("docker", "cp", STATE / f"host_{name}.pub", f"{name}:/etc/ssh/ssh_host_ed25519_key.pub")
    run("docker", "start", name)


def inside(name: str, script: str, stdin: str | None = None) -> str:
    """Run a shell script in a lab machine as root, not by ssh: for setting up and for reading back."""
    return run("docker", "exec", "-i", name, "sh", "-euc", script, stdin=stdin)


def authorize(name: str, user: str, home: str) -> None:
    public = (STATE / "id_ed25519.pub").read_text()
    script = (
        f"mkdir -p {home}/.ssh; cat > {home}/.ssh/authorized_keys; chmod 700 {home}/.ssh; chown -R {user}: {home}/.ssh"
    )
    inside(
        name, script + "; chown root: /etc/ssh/ssh_host_ed25519_key; chmod 600 /etc/ssh/ssh_host_ed25519_key", public
    )


def set_up_bastion() -> None:
    name = "lab-bastion"
    authorize(name, "root", "/root")
    if not answers("docker", "exec", name, "ip", "-4", "addr", "show", "to", BASTION_WAN):
        raise SystemExit("lab: the bastion has no address")
    run("docker", "cp", STATE / "ca.pem", f"{name}:/usr/local/share/ca-certificates/lab.crt")
    inside(name, "update-ca-certificates >/dev/null 2>&1")
    wait(f"Docker Engine in {name}", lambda: answers("docker", "exec", name, "docker", "info"), 60)
    for image in (BACKEND, LIGHT):
        load(image, "docker", "exec", "-i", name, "docker")


def load(image: str, *engine: str) -> None:
    """The image into another engine, of which `engine` is the docker command, unless it is there."""
    ask = ("image", "inspect", "-f", "{{.Id}}", image)
    there = subprocess.run([*engine, *ask], capture_output=True, text=True).stdout.strip()
    if run("docker", *ask) != there:
        print(f"lab: the image {image} into the engine of `{' '.join(engine)}`", flush=True)
        saved = subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE)
        subprocess.run([*engine, "load", "-q"], stdin=saved.stdout, check=True, stdout=subprocess.DEVNULL)


def set_up_gpu(number: int) -> None:
    name, _, _ = gpu(number)
    authorize(name, "root", "/root")
    for stack, folder in (("/srv/docai", "backend"), ("/srv/light", "light")):
        text = (HERE / folder / "docker-compose.yml").read_text()
        inside(name, f"mkdir -p {stack}; cat > {stack}/docker-compose.yml", text)
    if number == 2:
        inside(
            name,
            "id ops >/dev/null 2>&1 || useradd -m -s /bin/bash -p '*' ops; echo 'ops ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ops",
        )
        authorize(name, "ops", "/home/ops")
        inside(name, "rm -f /root/.ssh/authorized_keys")
    wait(f"Docker Engine in {name}", lambda: answers("docker", "exec", name, "docker", "info"), 60)


def model() -> None:
    """The tiny replica into the hub's volume: made by the backend image, once for each recipe."""
    recipe = images.hashed(
        *sorted(HERE.glob("replica*.py")), *sorted(HERE.glob("hub_repo.py")), HERE / "backend/requirements.txt"
    )
    mounts = ["-v", "lab-hub-data:/data", "-v", f"{HERE}:/lab:ro"]
    done = ["docker", "run", "--rm", "--network", "none", *mounts, BACKEND, "grep", "-qsx", recipe, "/data/.recipe"]
    if answers(*done):
        return
    print("lab: the model's tiny replica", flush=True)
    script = f"rm -rf /data/*; cd /tmp && PYTHONPATH=/lab /opt/venv/bin/python /lab/replica.py /data && echo {recipe} > /data/.recipe"
    run("docker", "run", "--rm", "--network", "none", *mounts, BACKEND, "sh", "-euc", script)


def up(gpus: int = 2) -> None:
    machine.install()
    STATE.mkdir(exist_ok=True)
    machine.engine(STATE)
    keys()
    images.all_images()
    model()
    networks()
    start_hub()
    fresh = not running("lab-bastion")
    start_host("lab-bastion", BASTION, 22, AIRGAP[0])
    if fresh:
        run("docker", "network", "connect", "--ip", BASTION_WAN, WAN[0], "lab-bastion")
    for number in range(1, gpus + 1):
        name, address, port = gpu(number)
        start_host(name, address, port, AIRGAP[0])
    set_up_bastion()
    for number in range(1, gpus + 1):
        set_up_gpu(number)
    wait(
        "the hub to answer",
        lambda: answers("docker", "exec", "lab-bastion", "curl", "-fsS", "https://lab-hub/_lab/log"),
        30,
    )
    print("lab: up", flush=True)


def containers() -> list[str]:
    return run("docker", "ps", "-a", "--filter", "name=^lab-", "--format", "{{.Names}}").split()


def down() -> None:
    """Remove containers, networks and the GPU hosts' disks; images and the bastion's engine stay as a cache."""
    machine.install()
    STATE.mkdir(exist_ok=True)
    machine.engine(STATE)  # a stopped engine still holds the lab of an earlier day
    names = containers()
    if names:
        run("docker", "rm", "-f", *names)
    for name, _ in (WAN, AIRGAP):
        if answers("docker", "network", "inspect", name):
            run("docker", "network", "rm", name)
    volumes = run("docker", "volume", "ls", "-q", "--filter", "name=lab-gpu").split()
    if volumes:
        run("docker", "volume", "rm", *volumes)


def purge() -> None:
    down()
    for volume in run("docker", "volume", "ls", "-q", "--filter", "name=lab-").split():
        run("docker", "volume", "rm", volume)
    for image in (HOST, BACKEND, LIGHT, images.BASE):
        subprocess.run(["docker", "rmi", image], capture_output=True)
    shutil.rmtree(BESIDE, ignore_errors=True)


def status() -> None:
    for name in containers():
        found = json.loads(run("docker", "inspect", name))[0]
        addresses = {net: about["IPAddress"] for net, about in found["NetworkSettings"]["Networks"].items()}
        print(f"{name:12} {found['State']['Status']:10} {addresses}")
