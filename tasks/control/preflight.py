"""What a host lacks for a release: pure rules over what `remote/look.py` saw. Everything at once, each with its mend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.control.settings import Settings, in_bytes
from tasks.shared.blobs import missing_blobs, split_blob
from tasks.shared.lock import Lock
from tasks.shared.signatures import SIGNERS, sign_command, writable_by_others
from tasks.shared.stack import LOADER, MARKER, SMOKE

Seen = Mapping[str, Any]
MARGIN = 64 << 20  # bytes left over on a filesystem: logs and the store's own records must still fit
CLOCK = 300  # seconds of skew at which TLS and logs begin to lie


def size(count: float) -> str:
    """Bytes for people: decimal units, as disks are sold and networks are billed."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def lacking(seen: Seen, lock: Lock) -> dict[str, int]:
    """The blobs that must come: lock − store."""
    return missing_blobs(lock.blobs(), seen["store"]["blobs"] or {})


def unfit(seen: Seen | None, settings: Settings, lock: Lock | None, role: str, now: float) -> list[str]:
    """Everything that is wrong with one host, as sentences; [] is fit. `role` is "bastion" or "gpu"."""
    if not seen:
        return ["could not be looked at: run again with -v, or `ssh` there and see whether python3 runs"]
    if not seen.get("python"):
        return ["python3 is missing; expected 3.9 or later. Next: install python3"]
    found = _programs(seen, role) + _store(seen, settings) + _space(seen, settings, lock, role)
    found += _signers(seen, settings)
    skew = abs(seen["clock"] - now)
    if skew > CLOCK:
        found.append(f"its clock is {skew:.0f} s off the control machine's; expected under {CLOCK} s. Next: set up NTP")
    if role == "bastion":
        found += _bundle(seen, settings, lock) if settings.source == "bundle" else _bastion(seen, lock)
    if role == "gpu":
        found += _stack(seen, settings) + _gpus(seen, settings)
        for target in seen["egress"] if settings.delivery != "online" else []:
            found.append(f"reaches {target}; expected no way out. Next: close it, or take it out of `egress`")
        if seen["store"]["frozen"]:
            why = seen["store"]["frozen"].get("why", "a revert failed")
            found.append(f"is frozen: {why}. Next: mend the service, then remove {settings.model_store}/state/frozen")
    return found


def _bastion(seen: Seen, lock: Lock | None) -> list[str]:
    """What fetch and the image's export will need; nothing, where the store has all of the lock."""
    have, found = seen["store"]["blobs"] or {}, []
    if not seen["skopeo"] and (lock is None or missing_blobs(lock.image_blobs(), have)):
        found.append("skopeo is missing; it exports the backend image. Next: install skopeo")
    if not seen["venv"] and (lock is None or missing_blobs(lock.model_blobs(), have)):
        found.append("python3 has no venv; fetch runs in one. Next: install python3-venv")
    return found


def _signers(seen: Seen, settings: Settings) -> list[str]:
    if seen["signers"] is None:
        put = f"its administrator writes {SIGNERS} (README, Signatures), or `sign` False"
        return [f"has no {SIGNERS}, and `sign` is on. Next: {put}"] if settings.sign else []
    found = []
    if odd := writable_by_others(seen["signers"]):
        mend = "chown root and chmod go-w, that file and the directories above it"
        found.append(f"{SIGNERS} can be changed by others than root: {odd}. Next: {mend}")
    if not seen["ssh_keygen"]:
        found.append("ssh-keygen is missing; it checks signatures. Next: install OpenSSH's client")
    return found


def unsigned(files: Sequence[str]) -> list[str]:
    """`files` of the release have no signature in git: a host that has its list of signers takes no release without."""
    found = f"{SIGNERS} asks for signatures, and there is none of {' and '.join(files)}"
    return [f"{found}. Next: {sign_command(*files)}"] if files else []


def _bundle(seen: Seen, settings: Settings, lock: Lock | None) -> list[str]:
    """What is wrong with the drive that this bastion gets its release from; nothing, where the store has all of it."""
    if lock is None or not lacking(seen, lock):
        return []
    drive = seen["bundle"]
    mend = f"mount the drive at {settings.bundle}"
    if drive["release"] is None:
        found = "a directory without it, as a writing that was cut off leaves" if drive["exists"] else "no directory"
        return [f"{settings.bundle}/bundle.json is missing; found {found}. Next: {mend}, or write the bundle again"]
    if drive["release"] != lock.id:
        mend = f"the right drive, or cp {settings.bundle}/lock.json group_data/locks/{settings.lock}.json"
        return [
            f"{settings.bundle} holds release {str(drive['release'])[:12]!a}; expected {lock.short}, the lock's. Next: {mend}"
        ]
    return []


def split(carried: Mapping[str, int], settings: Settings) -> list[int]:
    """The sizes of the parts that these blobs are in a bundle."""
    at_most = in_bytes(settings.bundle_part_size)
    return [size for blob, whole in carried.items() for _, _, size in split_blob(blob, whole, at_most)]


def fits(carried: Mapping[str, int], extra: Mapping[str, int], settings: Settings) -> tuple[bool, str]:
    """Whether these blobs and files go on a drive of `bundle_capacity`, and the line that says so."""
    sizes = [*split(carried, settings), *extra.values()]
    # A file is rounded up to the cluster: 128 KiB at most on FAT32 and exFAT of common drives. Their tables: 0.5 %.
    good = sum(sizes) * 1.005 + len(sizes) * (128 << 10) <= in_bytes(settings.bundle_capacity)
    drive = f"{settings.bundle_capacity[:-2]} {settings.bundle_capacity[-2:]}"
    return good, f"fits on {drive}: {'yes' if good else 'no'}, {size(sum(sizes))}"


def unwritable(
    seen: Seen | None, settings: Settings, carried: Mapping[str, int], extra: Mapping[str, int]
) -> list[str]:
    """Why this bundle cannot be written to the drive at the bastion, before a byte of it is fetched; [] is fine."""
    good, line = fits(carried, extra, settings)
    found = [] if good else [f"{line}. Next: a larger drive and `bundle_capacity`, or the far side's have.json"]
    drive = (seen or {}).get("bundle")
    if not drive:
        return found
    if not drive["exists"]:
        return [*found, f"{settings.bundle} is not there. Next: mount the drive, or mkdir"]
    there = sum((drive["parts"] or {}).values())  # an earlier bundle's parts stay, or make room
    need = sum(carried.values()) + sum(extra.values()) - there
    if need > drive["free_bytes"]:
        free = f"{size(drive['free_bytes'])} free on {drive['mount']}"
        found.append(f"{settings.bundle}: needs {size(need)}, {free}. Next: free some, a larger drive, or have.json")
    return found


def _programs(seen: Seen, role: str) -> list[str]:
    found = []
    if tuple(seen["python"]) < (3, 9):
        found.append(
            f"python3 is {'.'.join(map(str, seen['python']))}; expected 3.9 or later. Next: install a newer one"
        )
    if seen["user"] != 0:
        found.append("commands do not run as root. Next: ssh_user root, or `_sudo` True with password-less sudo")
    if not seen["rsync"]:
        found.append("rsync is missing. Next: install rsync")
    if role == "gpu":
        if not seen["rrsync"]:
            found.append("rrsync is missing (it comes with rsync 3.2.4 and later). Next: install rsync")
        if not seen["docker"]:
            found.append("no Docker Engine answers. Next: install docker, or `systemctl start docker`")
    if seen["docker"] and role == "gpu":
        version = (seen["docker"]["compose"] or "").lstrip("v")
        if _numbers(version) < [2]:
            found.append(f"Docker Compose is {version or 'missing'}; expected v2. Next: install the compose plugin")
    return found


def _store(seen: Seen, settings: Settings) -> list[str]:
    store, found = seen["store"], []
    if store["blobs"] is None or store["incoming"] is None or store["releases"] is None:
        found.append(f"{settings.model_store} cannot be read; nothing is assumed about it. Next: look at that disk")
    if len(store["devices"]) > 1:
        found.append(f"{settings.model_store} spans several filesystems; expected one. Next: mount the whole store")
    if seen["store_filesystem"]["read_only"]:
        found.append(
            f"{settings.model_store} is on a read-only filesystem. Next: mount it read-write, or look at its disk"
        )
    if settings.store_is_mount and not store["mounted"]:
        where = seen["store_filesystem"]["mount"]
        found.append(
            f"{settings.model_store} is not mounted (it lies on {where}). Next: mount it, or store_is_mount False"
        )
    return found


def _space(seen: Seen, settings: Settings, lock: Lock | None, role: str) -> list[str]:
    """Need against free, on the store's filesystem and on Docker's; one sum where they are the same."""
    if lock is None or seen["store"]["blobs"] is None:
        return []
    need = missing_blobs(lock.blobs(), seen["store"]["blobs"])
    incoming = {**(seen["store"]["incoming"] or {}), **(seen["store"]["fetching"] or {})}
    wanted = sum(need.values()) - sum(min(incoming.get(name, 0), count) for name, count in need.items())
    if role == "bastion" and settings.source == "hub":
        wanted += max((lock.model_blobs().get(name, 0) for name in need), default=0)  # a file that is fetched again
    disks = [(settings.model_store, seen["store_filesystem"], wanted, 3 * len(need) + 200)]
    if seen["docker"] and lock.tag not in seen["docker"]["images"]:
        layers = 3 * lock.costs()[lock.delivery]["image"]  # unpacked, plus the archive while it is read
        disks.append((seen["docker"]["root"]["path"], seen["docker"]["root"], layers, 50000))
    if seen["docker"] and lock.delivery == "online" and lock.volume not in seen["docker"]["volumes"]:
        root, model = seen["docker"]["root"], sum(lock.model_files().values())
        disks.append((f"{root['path']} (volume)", root, model, 200))
    found = []
    for device in {disk[1]["device"] for disk in disks}:
        on_it = [disk for disk in disks if disk[1]["device"] == device]
        bytes_needed, inodes_needed = sum(d[2] for d in on_it) + MARGIN, sum(d[3] for d in on_it)
        free, inodes = on_it[0][1]["free_bytes"], on_it[0][1]["free_inodes"]
        where = " and ".join(disk[0] for disk in on_it)
        if sum(d[2] for d in on_it) and free < bytes_needed:
            found.append(
                f"{where}: needs {size(bytes_needed)}, {size(free)} free. Next: tasks/prune.py, or a larger disk"
            )
        if sum(d[2] for d in on_it) and inodes is not None and inodes < inodes_needed:
            found.append(f"{where}: needs {inodes_needed} inodes, {inodes} free. Next: a filesystem with more inodes")
    return found


def _stack(seen: Seen, settings: Settings) -> list[str]:
    stack = seen.get("stack") or {"files": []}
    if not stack["files"]:
        return [f"{settings.stack} has no compose file (docker-compose.yml or any of its names). Next: setting `stack`"]
    if not seen["docker"]:
        return []
    if stack["services"] is None:
        return [f"`docker compose config` refuses {settings.stack}/{stack['files'][0]}. Next: run it there and mend it"]
    found = []
    if settings.service not in stack["services"]:
        found.append(
            f"the stack has no service {settings.service!r}; it has {', '.join(stack['services'])}. Next: `service`"
        )
    for name in sorted({SMOKE, LOADER} & set(stack["services"])):
        found.append(f"the stack has a service called {name}, which is the name of ours. Next: rename it in the stack")
    for name, text in stack["overrides"].items():
        if not (text or "").startswith(MARKER):
            found.append(
                f"{settings.stack}/{name} is not ours and would be lost. Next: move what it says into the stack's file"
            )
    return found


def _gpus(seen: Seen, settings: Settings) -> list[str]:
    if not settings.gpus:
        return []
    if not seen["gpus"]:
        return ["nvidia-smi shows no GPU. Next: install the driver, or set `gpus` to 0 for a CPU host"]
    found = []
    if isinstance(settings.gpus, int) and len(seen["gpus"]) < settings.gpus:
        found.append(f"has {len(seen['gpus'])} GPUs; expected {settings.gpus}. Next: setting `gpus`")
    if seen["docker"] and "nvidia" not in seen["docker"]["runtimes"]:
        found.append("Docker has no nvidia runtime. Next: install nvidia-container-toolkit and restart Docker")
    driver = seen["gpus"][0]["driver"]
    if settings.min_driver and _numbers(driver) < _numbers(settings.min_driver):
        found.append(f"its driver is {driver}; expected {settings.min_driver} or later. Next: a newer driver")
    return found


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]
