"""What a host is missing for a release: everything at once, each with its fix. Pure rules over the host's facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasks.control.rules.units import in_bytes, size
from tasks.control.settings import Settings
from tasks.shared.blobs import missing_blobs, split_blob
from tasks.shared.facts import Filesystem, HostFacts
from tasks.shared.lock import Lock
from tasks.shared.signatures import SIGNERS, sign_command, writable_by_others
from tasks.shared.stack import LOADER, MARKER, SMOKE

MARGIN = 64 << 20  # bytes left over on a filesystem, for logs and the store's own records
CLOCK = 300  # seconds; with more skew TLS fails and logs mislead
OLDEST_PYTHON = (3, 9)
NOT_INSPECTED = "could not be inspected: run again with -v, or `ssh` there and see whether python3 runs"


def missing(facts: HostFacts, lock: Lock) -> dict[str, int]:
    """The blobs that must come, as {sha256: size}: lock minus store."""
    return missing_blobs(lock.blobs(), facts.store.blobs or {})


def python_problem(python: Sequence[int] | None) -> list[str]:
    """Why the host's Python cannot run our programs, as sentences; [] where it can."""
    if not python:
        return ["python3 is missing; expected 3.9 or later. Next: install python3"]
    if tuple(python) < OLDEST_PYTHON:
        version = ".".join(map(str, python))
        return [f"python3 is {version}; expected 3.9 or later. Next: install a newer one"]
    return []


def problems_of_gpu_host(facts: HostFacts, settings: Settings, lock: Lock | None, now: float) -> list[str]:
    """Everything that is wrong with a GPU host, as sentences; [] is fit. now: seconds since the epoch."""
    found = _programs(facts) + _programs_of_gpu_host(facts)
    found += _store(facts, settings) + _space(facts, settings, lock, refetch=False)
    found += _signers(facts, settings) + _clock(facts, now)
    found += _stack(facts, settings) + _gpus(facts, settings)
    if settings.delivery != "online":
        for target in facts.egress:
            found.append(f"reaches {target}; expected no way out. Next: close it, or take it out of `egress`")
    if facts.store.frozen:
        why = facts.store.frozen.get("why", "a revert failed")
        found.append(f"is frozen: {why}. Next: fix the service, then remove {settings.model_store}/state/frozen")
    return found


def problems_of_bastion(facts: HostFacts, settings: Settings, lock: Lock | None, now: float) -> list[str]:
    """Everything that is wrong with the bastion, as sentences; [] is fit. now: seconds since the epoch."""
    found = _programs(facts) + _store(facts, settings)
    found += _space(facts, settings, lock, refetch=settings.source == "hub")
    found += _signers(facts, settings) + _clock(facts, now)
    return found + (_bundle(facts, settings, lock) if settings.source == "bundle" else _fetching(facts, lock))


# --------------------------------------------------------------------------------------------------------- programs


def _programs(facts: HostFacts) -> list[str]:
    found = []
    if facts.user != 0:
        found.append("commands do not run as root. Next: ssh_user root, or `_sudo` True with password-less sudo")
    if not facts.rsync:
        found.append("rsync is missing. Next: install rsync")
    return found


def _programs_of_gpu_host(facts: HostFacts) -> list[str]:
    found = []
    if not facts.rrsync:
        found.append("rrsync is missing (it comes with rsync 3.2.4 and later). Next: install rsync")
    if not facts.docker:
        return [*found, "no Docker Engine answers. Next: install docker, or `systemctl start docker`"]
    version = (facts.docker.compose or "").lstrip("v")
    if _numbers(version) < [2]:
        found.append(f"Docker Compose is {version or 'missing'}; expected v2. Next: install the compose plugin")
    return found


def _fetching(facts: HostFacts, lock: Lock | None) -> list[str]:
    """What fetch and the image's export need. Nothing, where the store has all of the lock."""
    have, found = facts.store.blobs or {}, []
    if not facts.skopeo and (lock is None or missing_blobs(lock.image_blobs(), have)):
        found.append("skopeo is missing; it exports the backend image. Next: install skopeo")
    if not facts.venv and (lock is None or missing_blobs(lock.model_blobs(), have)):
        found.append("python3 has no venv; fetch runs in one. Next: install python3-venv")
    return found


def _clock(facts: HostFacts, now: float) -> list[str]:
    skew = abs(facts.clock - now)
    if skew <= CLOCK:
        return []
    return [f"its clock is {skew:.0f} s off the control machine's; expected under {CLOCK} s. Next: set up NTP"]


def _signers(facts: HostFacts, settings: Settings) -> list[str]:
    if facts.signers is None:
        put = f"its administrator writes {SIGNERS} (docs/signatures.md), or `sign` False"
        return [f"has no {SIGNERS}, and `sign` is on. Next: {put}"] if settings.sign else []
    found = []
    if odd := writable_by_others(facts.signers):
        fix = "chown root and chmod go-w, that file and the directories above it"
        found.append(f"{SIGNERS} can be changed by others than root: {odd}. Next: {fix}")
    if not facts.ssh_keygen:
        found.append("ssh-keygen is missing; it checks signatures. Next: install OpenSSH's client")
    return found


def unsigned(files: Sequence[str]) -> list[str]:
    """Why a host that asks for signatures cannot take the release: `files` have no signature in git. [] where none."""
    found = f"{SIGNERS} asks for signatures, and there is none of {' and '.join(files)}"
    return [f"{found}. Next: {sign_command(*files)}"] if files else []


# ------------------------------------------------------------------------------------------------------------ disks


def _store(facts: HostFacts, settings: Settings) -> list[str]:
    store, found = facts.store, []
    if store.blobs is None or store.incoming is None or store.releases is None:
        found.append(f"{settings.model_store} cannot be read; nothing is assumed about it. Next: look at that disk")
    if len(store.devices) > 1:
        found.append(f"{settings.model_store} spans several filesystems; expected one. Next: mount the whole store")
    if facts.store_filesystem.read_only:
        fix = "mount it read-write, or look at its disk"
        found.append(f"{settings.model_store} is on a read-only filesystem. Next: {fix}")
    if settings.store_is_mount and not store.mounted:
        where, fix = facts.store_filesystem.mount, "mount it, or store_is_mount False"
        found.append(f"{settings.model_store} is not mounted (it lies on {where}). Next: {fix}")
    return found


def _space(facts: HostFacts, settings: Settings, lock: Lock | None, refetch: bool) -> list[str]:
    """Bytes and inodes that are needed against those that are free; one sum where two paths lie on one filesystem.

    refetch: the largest missing file may come twice, as a fetch that was cut off does not resume.
    """
    if lock is None or facts.store.blobs is None:
        return []
    disks = _needs(facts, settings, lock, refetch)
    found = []
    for device in {filesystem.device for _, filesystem, _, _ in disks}:
        on_it = [disk for disk in disks if disk[1].device == device]
        where = " and ".join(path for path, _, _, _ in on_it)
        filesystem, content = on_it[0][1], sum(need for _, _, need, _ in on_it)
        need_bytes, need_inodes = content + MARGIN, sum(inodes for _, _, _, inodes in on_it)
        free = filesystem.free_inodes
        if content and filesystem.free_bytes < need_bytes:
            fix = "tasks/prune.py, or a larger disk"
            found.append(f"{where}: needs {size(need_bytes)}, {size(filesystem.free_bytes)} free. Next: {fix}")
        if content and free is not None and free < need_inodes:
            found.append(f"{where}: needs {need_inodes} inodes, {free} free. Next: a filesystem with more inodes")
    return found


def _needs(facts: HostFacts, settings: Settings, lock: Lock, refetch: bool) -> list[tuple[str, Filesystem, int, int]]:
    """[(path, its filesystem, bytes, inodes)] that the release still needs: in the store, and where Docker keeps its data."""
    need = missing(facts, lock)
    unfinished = {**(facts.store.incoming or {}), **(facts.store.fetching or {})}
    wanted = sum(need.values()) - sum(min(unfinished.get(name, 0), count) for name, count in need.items())
    if refetch:
        wanted += max((lock.model_blobs().get(name, 0) for name in need), default=0)
    disks = [(settings.model_store, facts.store_filesystem, wanted, 3 * len(need) + 200)]
    if facts.docker is None:
        return disks
    root = facts.docker.root
    if lock.tag not in facts.docker.images:
        layers = 3 * lock.costs()[lock.delivery]["image"]  # unpacked, plus the archive while it is read
        disks.append((root.path, root, layers, 50000))
    if lock.delivery == "online" and lock.volume not in facts.docker.volumes:
        disks.append((f"{root.path} (volume)", root, sum(lock.model_files().values()), 200))
    return disks


# -------------------------------------------------------------------------------------------------- drives, bundles


def _bundle(facts: HostFacts, settings: Settings, lock: Lock | None) -> list[str]:
    """What is wrong with the drive that this bastion gets its release from. Nothing, where the store has all of it."""
    if lock is None or not missing(facts, lock) or facts.bundle is None:
        return []
    drive, fix = facts.bundle, f"mount the drive at {settings.bundle}"
    if drive.release is None:
        there = drive.filesystem.exists
        found = "a directory without it, as a writing that was cut off leaves" if there else "no directory"
        return [f"{settings.bundle}/bundle.json is missing; found {found}. Next: {fix}, or write the bundle again"]
    if drive.release != lock.id:
        fix = f"the right drive, or cp {settings.bundle}/lock.json group_data/locks/{settings.lock}.json"
        holds = f"{settings.bundle} holds release {drive.release[:12]!a}"
        return [f"{holds}; expected {lock.short}, the lock's. Next: {fix}"]
    return []


def part_sizes(carried: Mapping[str, int], settings: Settings) -> list[int]:
    """The sizes in bytes of the parts that these blobs are in a bundle."""
    at_most = in_bytes(settings.bundle_part_size)
    return [part for blob, whole in carried.items() for _, _, part in split_blob(blob, whole, at_most)]


def fits_drive(carried: Mapping[str, int], extra: Mapping[str, int], settings: Settings) -> tuple[bool, str]:
    """Whether these blobs and files go on a drive of `bundle_capacity`, and the line that says so."""
    sizes = [*part_sizes(carried, settings), *extra.values()]
    # A file is rounded up to the cluster: 128 KiB at most on FAT32 and exFAT of common drives. Their tables: 0.5 %.
    good = sum(sizes) * 1.005 + len(sizes) * (128 << 10) <= in_bytes(settings.bundle_capacity)
    drive = f"{settings.bundle_capacity[:-2]} {settings.bundle_capacity[-2:]}"
    return good, f"fits on {drive}: {'yes' if good else 'no'}, {size(sum(sizes))}"


def unwritable(
    facts: HostFacts | None, settings: Settings, carried: Mapping[str, int], extra: Mapping[str, int]
) -> list[str]:
    """Why this bundle cannot be written to the drive, before a byte of it is fetched, as sentences; [] is fine."""
    good, line = fits_drive(carried, extra, settings)
    found = [] if good else [f"{line}. Next: a larger drive and `bundle_capacity`, or the far side's contents.json"]
    drive = facts.bundle if facts else None
    if not drive:
        return found
    if not drive.filesystem.exists:
        return [*found, f"{settings.bundle} is not there. Next: mount the drive, or mkdir"]
    there = sum((drive.parts or {}).values())  # an earlier bundle's parts stay, or make room
    need = sum(carried.values()) + sum(extra.values()) - there
    if need > drive.filesystem.free_bytes:
        free = f"{size(drive.filesystem.free_bytes)} free on {drive.filesystem.mount}"
        fix = "free some, a larger drive, or contents.json"
        found.append(f"{settings.bundle}: needs {size(need)}, {free}. Next: {fix}")
    return found


# --------------------------------------------------------------------------------------------------- stack and GPUs


def _stack(facts: HostFacts, settings: Settings) -> list[str]:
    stack = facts.stack
    if stack is None or not stack.files:
        return [f"{settings.stack} has no compose file (docker-compose.yml or any of its names). Next: setting `stack`"]
    if not facts.docker:
        return []
    if stack.services is None:
        return [f"`docker compose config` refuses {settings.stack}/{stack.files[0]}. Next: run it there and fix it"]
    found = []
    if settings.service not in stack.services:
        has = ", ".join(stack.services)
        found.append(f"the stack has no service {settings.service!r}; it has {has}. Next: `service`")
    for name in sorted({SMOKE, LOADER} & set(stack.services)):
        found.append(f"the stack has a service called {name}, which is the name of ours. Next: rename it in the stack")
    for name, text in stack.overrides.items():
        if not (text or "").startswith(MARKER):
            fix = "move what it says into the stack's file"
            found.append(f"{settings.stack}/{name} is not ours and would be lost. Next: {fix}")
    return found


def _gpus(facts: HostFacts, settings: Settings) -> list[str]:
    if not settings.gpus:
        return []
    if not facts.gpus:
        return ["nvidia-smi shows no GPU. Next: install the driver, or set `gpus` to 0 for a CPU host"]
    found = []
    if isinstance(settings.gpus, int) and len(facts.gpus) < settings.gpus:
        found.append(f"has {len(facts.gpus)} GPUs; expected {settings.gpus}. Next: setting `gpus`")
    if facts.docker and "nvidia" not in facts.docker.runtimes:
        found.append("Docker has no nvidia runtime. Next: install nvidia-container-toolkit and restart Docker")
    driver = facts.gpus[0].driver
    if settings.min_driver and _numbers(driver) < _numbers(settings.min_driver):
        found.append(f"its driver is {driver}; expected {settings.min_driver} or later. Next: a newer driver")
    return found


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]
