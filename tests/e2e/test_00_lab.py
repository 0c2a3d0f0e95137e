"""The ground the other tests stand on: a GPU host has no way out, the bastion has one, and both are real machines."""

from __future__ import annotations

import subprocess

import pytest

from tests.e2e.conftest import GPU_HOSTS, ROOT, inside

HUB = "10.77.1.5"
BASTION_OUTSIDE = "10.77.1.10"


def tcp(address: str, port: int) -> tuple[str, ...]:
    return ("timeout", "3", "bash", "-c", f"</dev/tcp/{address}/{port}")


# The very same commands on both sides: what fails on a GPU host is seen to succeed on the bastion.
WAYS_OUT = {
    "DNS": ("timeout", "10", "getent", "ahostsv4", "lab-hub"),
    "TCP": tcp(HUB, 443),
    "ping": ("ping", "-c", "1", "-W", "2", HUB),
}


@pytest.mark.parametrize("way", WAYS_OUT)
@pytest.mark.parametrize("host", GPU_HOSTS)
def test_a_gpu_host_has_no_way_out(host: str, way: str) -> None:
    # 127: the command itself is missing, which would look like a host without network.
    assert inside(host, *WAYS_OUT[way]).returncode not in (0, 126, 127)


@pytest.mark.parametrize("way", WAYS_OUT)
def test_the_bastion_has_a_way_out(way: str) -> None:
    done = inside("lab-bastion", *WAYS_OUT[way])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("host", GPU_HOSTS)
def test_a_gpu_host_reaches_the_bastion_on_the_inner_side_alone(host: str) -> None:
    assert inside(host, *tcp("10.77.2.10", 22)).returncode == 0
    assert inside(host, *tcp(BASTION_OUTSIDE, 22)).returncode not in (0, 126, 127)


def test_a_gpu_host_is_on_the_inner_network_alone() -> None:
    for host in GPU_HOSTS:
        networks = subprocess.run(
            ["docker", "inspect", "-f", "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}", host],
            capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip
        assert networks == ["lab-airgap"]


def test_the_bastion_trusts_the_hubs_certificate_by_the_lab_ca() -> None:
    """By name and verified; the same request without the CA is refused."""
    request = ("curl", "-fsS", "-m", "10", "-o", "/dev/null", "https://lab-hub/_lab/log")
    done = inside("lab-bastion", *request)
    assert done.returncode == 0, done.stderr
    # Another CA's file alone: Debian's curl would go on to look in the system's folder, too.
    other = ("--capath", "/nonexistent", "--cacert", "/etc/ssl/certs/ISRG_Root_X1.pem")
    assert inside("lab-bastion", *request, *other).returncode == 60


@pytest.mark.parametrize("machine", ["lab-bastion", *GPU_HOSTS])
def test_each_machine_has_an_engine_and_compose_of_its_own(machine: str) -> None:
    engine = inside(machine, "docker", "info", "--format", "{{.Name}} {{.Driver}}")
    assert engine.stdout.split() == [machine, "overlay2"], engine.stderr
    compose = inside(machine, "docker", "compose", "version", "--short")
    assert compose.stdout.lstrip("v").startswith("2."), compose.stderr


def test_the_bastions_engine_runs_the_backend_image_without_a_network() -> None:
    run = ("docker", "run", "--rm", "--network", "none", "docai/backend:1.0", "/opt/venv/bin/python", "-c")
    done = inside(
        "lab-bastion", *run, "import torch, colpali_engine; print('loaded', torch.cuda.is_available())", seconds=120
    )
    assert done.stdout.split() == ["loaded", "False"], done.stderr


def test_ssh_reaches_every_machine_as_the_inventory_says(tmp_path) -> None:
    """OpenSSH, strict host keys: ops on port 2222 through the bastion for the second GPU host. A wrong host key is refused."""
    state = ROOT / "tests/lab/state"
    ways = [("root", "10.77.2.10", 22), ("root", "10.77.2.11", 22), ("ops", "10.77.2.12", 2222)]

    def ssh(user: str, address: str, port: int, *options: str) -> subprocess.CompletedProcess[str]:
        words = ["ssh", *options, "-F", str(state / "ssh_config"), "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
        sudo = [] if user == "root" else ["sudo", "-n"]
        return subprocess.run(
            [*words, "-p", str(port), f"{user}@{address}", *sudo, "id", "-u"],
            capture_output=True,
            text=True,
            timeout=30,
        )

    for way in ways:
        done = ssh(*way)
        assert (done.returncode, done.stdout.strip()) == (0, "0"), (way, done.stderr)
    stranger = tmp_path / "known_hosts"
    bastion_key, gpu1_key = ((state / f"host_lab-{name}.pub").read_text().split()[1] for name in ("bastion", "gpu1"))
    assert bastion_key != gpu1_key
    stranger.write_text(f"10.77.2.11 ssh-ed25519 {bastion_key}\n")
    assert "Host key verification failed" in ssh(*ways[1], "-o", f"UserKnownHostsFile={stranger}").stderr
