"""What operators ask of a fleet beside its deploys: rollback, leases, status, verify, prune, and what hosts have lost."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from tests.e2e.conftest import BASTION, ROOT, on
from tests.e2e.fleet import (
    CANARY,
    GOLDENS,
    HOSTS,
    LOCK,
    OTHERS,
    STORE,
    background,
    container,
    current,
    deploy,
    fleet,
    journal,
    lock_version,
    settle,
    table,
    until,
    weights,
)
from tests.lab import lab

# ------------------------------------------------------------------------------------------------------------ rollback


def test_rollback_needs_neither_bastion_nor_hub(settled):
    new = deploy(settled.next).report["release"]
    direct = [name for name in HOSTS if name != "lab-gpu2"]  # that one is reached through the bastion
    for name in (BASTION, "lab-hub"):
        lab.run("docker", "pause", name)
    try:
        run = fleet("tasks/rollback.py", *[word for name in direct for word in ("--limit", name)])
        status = fleet("tasks/status.py", *[word for name in direct for word in ("--limit", name)])
    finally:
        for name in (BASTION, "lab-hub"):
            lab.run("docker", "unpause", name)
    assert run.code == 0, run.said[-3000:]
    assert {status.host(name)["state"] for name in direct} == {"in sync"}
    assert {current(name) for name in direct} == {settled.release} and current("lab-gpu2") == new
    assert {run.host(name)["state"] for name in direct} == {"active"}
    rest = fleet("tasks/rollback.py", "--limit", "lab-gpu2")
    assert rest.code == 0 and len({weights(name) for name in HOSTS}) == 1


def test_rollback_moves_nobody_when_one_host_lacks_its_target(settled):
    new = deploy(settled.next).report["release"]
    foreign, mangled, victim = HOSTS[1:]
    old_blobs = json.loads(on(victim, f"cat {STORE}/releases/{settled.release}/lock.json"))["models"][0]["files"]
    blob = old_blobs["model.safetensors"]["sha256"]
    on(victim, f"chmod u+w {STORE}/blobs/{blob}; printf x | dd of={STORE}/blobs/{blob} conv=notrunc bs=1 seek=99 2>&1")
    on(mangled, f"echo '{{{{: nonsense' > {STORE}/state/{settled.release}/compose.confirmed.yaml")
    override = "/srv/light/docker-compose.override.yml"
    on(foreign, f"mv {override} /tmp/ours; echo '# mine' > {override}")
    ids = [container(name) for name in HOSTS]
    run = fleet("tasks/rollback.py")
    on(foreign, f"mv /tmp/ours {override}")
    assert run.code == 1 and "is not intact" in run.host(victim)["why"]
    assert "its override is missing" in run.host(mangled)["why"] and "is not ours" in run.host(foreign)["why"]
    assert run.host(HOSTS[0])["state"] == "held" and "raceback" not in run.said
    assert [container(name) for name in HOSTS] == ids and {current(name) for name in HOSTS} == {new}


def test_rollback_to_a_release_by_its_id(settled):
    deploy(settled.next)
    deploy("words")
    on(CANARY, f"echo {settled.release} > {STORE}/previous")
    for apart in (fleet("--dry", "tasks/rollback.py"), fleet("tasks/rollback.py")):
        assert apart.code == 1 and "would take hosts to different releases" in apart.said
    run = fleet("tasks/rollback.py", "--data", f"release={settled.release}")
    assert run.code == 0 and {current(name) for name in HOSTS} == {settled.release}, run.said[-2000:]
    nowhere = fleet("tasks/rollback.py", "--data", f"release={'f' * 64}")
    assert nowhere.code == 1 and "matches no release of this host" in nowhere.host(CANARY)["why"]
    assert {current(name) for name in HOSTS} == {settled.release}


def test_rollback_never_reports_success_for_a_host_that_did_not_move(settled):
    deploy(settled.next)
    on(HOSTS[2], f"rm {STORE}/previous")
    run = fleet("tasks/rollback.py")
    assert run.code == 1 and "has nowhere to go" in run.host(HOSTS[2])["why"]
    assert settled.release not in {current(name) for name in HOSTS}


def test_rollback_goes_to_the_settings_that_were_confirmed_not_to_those_that_were_turned_down(settled):
    turned_down = fleet("deploy.py", "--data", 'environment={"FAULT": "wrong"}')
    assert turned_down.host(CANARY)["state"] == "withdrawn"
    deploy(settled.next)
    run = fleet("tasks/rollback.py")
    assert run.code == 0 and {run.host(name)["state"] for name in HOSTS} == {"active"}, run.said[-2000:]
    assert {current(name) for name in HOSTS} == {settled.release}
    assert "embedding space: " in run.said and "on 4 hosts" in run.said
    there = fleet("--dry", "tasks/rollback.py")
    assert there.code == 0 and {there.host(name)["state"] for name in HOSTS} == {"unchanged"}


def test_a_deploy_that_fails_its_smoke_test_leaves_the_way_back_as_it_was(settled):
    new = deploy(settled.next).report["release"]
    others = json.loads(GOLDENS.read_text())
    lock_version(settled.version)
    mine = GOLDENS.read_text()
    GOLDENS.write_text(json.dumps({**others, "release": settled.release}, indent=1) + "\n")
    run = fleet("deploy.py")
    assert run.code == 1 and "embeddings are the goldens" in run.host(CANARY)["why"], run.said[-2000:]
    assert {current(name) for name in HOSTS} == {new}
    back = fleet("tasks/rollback.py")
    assert back.code == 0 and {current(name) for name in HOSTS} == {settled.release}, back.said[-2000:]
    assert fleet("tasks/status.py").host(CANARY)["cosine"] == 1.0, "of the test that passed"
    again = fleet("deploy.py")
    assert again.code == 1 and "embeddings are the goldens" in again.host(CANARY)["why"], "not taken for proven"
    GOLDENS.write_text(mine)
    assert deploy().report["verdict"] == "ok"
    assert {row["state"] for row in deploy().report["hosts"].values()} == {"proven", "unchanged"}


def test_a_host_that_was_staged_before_and_cannot_be_switched_now_stops_the_rollout_at_its_beginning(settled):
    lock_version(settled.next)
    wrong = ("deploy.py", "--data", 'environment={"FAULT": "wrong"}')
    assert fleet(*wrong).host(CANARY)["state"] == "withdrawn"
    switches = sum(entry["step"] == "begin" for entry in journal(CANARY))
    on(HOSTS[2], "mount --bind /srv/light /srv/light && mount -o remount,bind,ro /srv/light")
    try:
        run = fleet(*wrong)
    finally:
        on(HOSTS[2], "umount /srv/light")
    assert run.code == 1 and "Read-only file system" in run.host(HOSTS[2])["why"], run.said[-2000:]
    assert run.host(CANARY)["state"] == "held" and run.host(CANARY)["moved_bytes"] == 0
    assert sum(entry["step"] == "begin" for entry in journal(CANARY)) == switches, "nobody was switched"


def test_a_run_that_is_for_no_gpu_host_is_no_success(settled):
    for task in ("rollback", "status", "verify"):
        run = fleet(f"tasks/{task}.py", "--limit", BASTION)
        assert run.code == 1 and "none is meant" in run.said
    for task in ("lock", "contents"):
        run = fleet(f"tasks/{task}.py", "--limit", CANARY)
        assert run.code == 1 and f"is about {BASTION}" in run.said
    few = fleet("tasks/prune.py", "--limit", BASTION, "--limit", CANARY)
    assert few.code == 1 and f"--exclude {BASTION}" in few.said, "another rollout may be pushing from there"
    misspelt = fleet("tasks/status.py", "--limit", CANARY, "--limit", "lab-gpu9")
    assert misspelt.code == 1 and "lab-gpu9 matches no host" in misspelt.said


# -------------------------------------------------------------------------------------------------------------- leases


def leased(name: str) -> dict:
    return json.loads(on(name, f"cat {STORE}/lease.json 2>/dev/null || echo null") or "null")


def test_a_second_rollout_shows_the_first_and_exits(settled):
    lock_version(settled.next)
    running = background("deploy.py", "--data", "soak=15")
    try:
        until("the first rollout holds its hosts", lambda: all(leased(name) for name in HOSTS))
        second = fleet("tasks/rollback.py")
        assert second.code == 1
        why = second.host(CANARY)["why"]
        assert "is in another rollout" in why and leased(CANARY)["id"] in why and "deploy" in why
        wrong = fleet("tasks/unlock.py", "--data", "lease=x00000000")
        assert wrong.code == 1 and leased(CANARY)["id"] in wrong.host(CANARY)["why"]
        status = fleet("tasks/status.py")
        assert status.code == 0 and {status.host(name)["state"] for name in HOSTS} == {"in sync", "switching"}
        assert f"held by lease {leased(CANARY)['id']}" in status.said and "deploy since" in status.said
        begun = f"ls {STORE}/state"
        until("a host is being switched", lambda: any("pending" in on(name, begun).split() for name in HOSTS))
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    until("the lease ends with its controller", lambda: not any(leased(name) for name in HOSTS))
    run = deploy()  # goes on from the hosts' journals, and waits for an activation that puts itself back
    assert {current(name) for name in HOSTS} == {run.report["release"]} != {settled.release}
    assert "an earlier run was switching it" in run.said, "and says that it waits"


def test_a_rollout_whose_lease_is_taken_ends_the_switch_that_it_is_in_and_begins_no_other(settled):
    lock_version(settled.next)
    running = background("deploy.py", "--data", "soak=10")
    try:
        until("the canary is being switched", lambda: "soak" in [entry["step"] for entry in journal(CANARY)[-1:]])
        taken = fleet("tasks/unlock.py", "--data", f"lease={leased(CANARY)['id']}")
        assert taken.code == 0 and {taken.host(name)["state"] for name in HOSTS} == {"unlocked"}
        assert running.wait(timeout=120) == 1
    finally:
        running.kill()
    last = json.loads((ROOT / "reports/last.json").read_text())["hosts"]
    assert last[CANARY]["state"] == "active" and current(CANARY) != settled.release
    assert {current(name) for name in OTHERS} == {settled.release}
    assert all("lost its lease" in last[name]["why"] for name in OTHERS)


def test_unlock_takes_a_lease_by_its_id_and_is_journaled(settled):
    lock_version(settled.next)
    tool = on(HOSTS[2], f"ls -t {STORE}/tool/*.pyz | head -1").strip()
    words = f"--store {STORE} --id x0000abcd --who eve@laptop --release none --why lunch"
    hanging = f"while sleep 5; do echo; done | python3 {tool} lease hold {words} >/dev/null"
    lab.run("docker", "exec", "-d", HOSTS[2], "sh", "-c", hanging)
    until("the lease is held", lambda: leased(HOSTS[2]))
    run = fleet("deploy.py")
    assert run.code == 1 and "x0000abcd of eve@laptop" in run.host(HOSTS[2])["why"]
    assert {current(name) for name in HOSTS} == {settled.release}, "all or none"
    assert "tasks/unlock.py --data lease=x0000abcd" in run.host(HOSTS[2])["why"]
    assert "x0000abcd of eve@laptop" in fleet("tasks/status.py").host(HOSTS[2])["lease"]
    would = fleet("--dry", "tasks/unlock.py", "--data", "lease=x0000abcd")
    assert would.host(HOSTS[2])["state"] == "would unlock" and "eve@laptop" in would.host(HOSTS[2])["why"]
    assert "eve@laptop" in on(HOSTS[2], f"cat {STORE}/lease.json"), "and nothing was ended"
    taken = fleet("tasks/unlock.py", "--data", "lease=x0000abcd")
    assert taken.code == 0 and "took lease x0000abcd of eve@laptop" in taken.host(HOSTS[2])["why"]
    assert taken.host(HOSTS[2])["lease"] is None
    assert journal(HOSTS[2])[-1]["step"] == "unlock" and journal(HOSTS[2])[-1]["lease"]["who"] == "eve@laptop"
    deploy()


# ------------------------------------------------------------------------------------------------------ status, verify


def test_status_changes_nothing_and_tells_what_runs(settled):
    before = [table(name, "docker ps -q --no-trunc") for name in HOSTS]
    run = fleet("tasks/status.py")
    assert run.code == 0, run.said[-2000:]
    for name in HOSTS:
        row = run.host(name)
        assert (row["state"], row["release"], row["container"][:7]) == ("in sync", settled.release, "healthy")
        assert row["cosine"] == 1.0 and row["since"] and row["verified"] and row["disk_free_bytes"] > 0
    assert [table(name, "docker ps -q --no-trunc") for name in HOSTS] == before


DRIFT = {
    "the override beside the stack is not the release's": "echo '# mine' >> /srv/light/docker-compose.override.yml",
    "the service is exited": "docker stop -t 1 light-backend-1",
    "of its blobs missing": f"rm $(ls {STORE}/blobs/* | head -1)",
    "another environment: HF_HUB_OFFLINE": "cd /srv/light && sed -i 's/HF_HUB_OFFLINE: .1./HF_HUB_OFFLINE: \"0\"/' "
    "docker-compose.override.yml && docker compose up -d --pull never 2>&1",
}


@pytest.mark.parametrize("what", DRIFT)
def test_status_names_drift(settled, what):
    on(CANARY, DRIFT[what])
    run = fleet("tasks/status.py")
    assert run.code == 1 and run.host(CANARY)["state"] == "drifted" and what in run.host(CANARY)["why"]
    assert {run.host(name)["state"] for name in OTHERS} == {"in sync"}


def test_a_deploy_brings_back_what_a_host_has_lost(settled):
    """Somebody tidied up the state of what runs; a host lost its word of the bytes; a tool was cut short, a record mangled."""
    folder = f"{STORE}/state/{settled.release}"
    on(HOSTS[0], f"rm -r {folder}")
    on(HOSTS[1], f"rm {folder}/verified-at; rm {STORE}/releases/{settled.release}/hub/models--*/blobs/*")
    on(HOSTS[2], f"for tool in {STORE}/tool/*.pyz; do truncate -s 20000 $tool; done; rm {folder}/smoke.json")
    on(HOSTS[3], f"echo nonsense > {STORE}/state/pending; echo 1 >> {STORE}/journal.jsonl")
    ids = [container(name) for name in HOSTS]
    status = fleet("tasks/status.py")
    assert "state/pending is not a record of ours" in status.host(HOSTS[3])["why"]
    assert "model.safetensors" in status.host(HOSTS[1])["why"]
    run = fleet("deploy.py")
    assert run.code == 1 and f"rm {STORE}/state/pending" in run.host(HOSTS[3])["why"], run.said[-2000:]
    on(HOSTS[3], f"rm {STORE}/state/pending")
    assert deploy().report["verdict"] == "ok"
    assert {row["state"] for row in deploy().report["hosts"].values()} == {"proven", "unchanged"}
    now = [container(name) for name in HOSTS]
    assert fleet("tasks/status.py").code == 0 and now[::2] == ids[::2] and now[1] != ids[1], (
        "only what was mounted anew"
    )


def test_a_service_that_was_cut_off_or_mounts_what_is_gone_is_drift_and_made_anew(settled):
    on(HOSTS[0], "docker network disconnect light_front light-backend-1")
    on(HOSTS[3], "for to in disconnect connect; do docker network $to light_default light-backend-1; done")
    on(HOSTS[1], f"chmod -R u+w {STORE}/releases/{settled.release}; rm -r {STORE}/releases/{settled.release}")
    on(HOSTS[2], "docker restart -t 1 light-backend-1")
    healthy = "docker inspect -f '{{.State.Health.Status}}' light-backend-1"
    until("it is healthy again", lambda: on(HOSTS[2], healthy).strip() == "healthy", within=120)
    ids, status = [container(name) for name in HOSTS], fleet("tasks/status.py")
    assert "is not on its network light_front" in status.host(HOSTS[0])["why"]
    assert "is not called backend on its network light_default" in status.host(HOSTS[3])["why"]
    assert "missing or not readable" in status.host(HOSTS[1])["why"]
    assert status.host(HOSTS[2])["state"] == "in sync", status.said[-2000:]
    deploy()
    now = [container(name) for name in HOSTS]
    assert [old != new for old, new in zip(ids, now, strict=True)] == [True, True, False, True]
    assert fleet("tasks/status.py").code == 0 and len({weights(name) for name in HOSTS}) == 1


def test_no_service_is_confirmed_whose_host_has_lost_the_goldens(settled):
    on(CANARY, f"rm {STORE}/state/{settled.release}/goldens.json")
    run = fleet("deploy.py", "--data", 'environment={"FAULT": "wrong"}')
    assert run.code == 1 and "otherwise than the goldens" in run.host(CANARY)["why"], run.said[-2000:]
    assert {run.host(name)["state"] for name in OTHERS} == {"held"}


def test_verify_names_a_flipped_byte(settled):
    assert fleet("tasks/verify.py").code == 0
    blob = json.loads(LOCK.read_text())["models"][0]["files"]["model.safetensors"]["sha256"]
    path = f"{STORE}/blobs/{blob}"
    on(CANARY, f"touch -r {path} /tmp/t; printf x | dd of={path} conv=notrunc bs=1 seek=9 2>&1; touch -r /tmp/t {path}")
    run = fleet("tasks/verify.py")
    assert run.code == 1 and run.host(CANARY)["state"] == "damaged"
    assert "model.safetensors is damaged" in run.host(CANARY)["why"]
    assert {run.host(name)["state"] for name in OTHERS} == {"intact"}


# --------------------------------------------------------------------------------------------------------------- prune


def test_prune_keeps_what_is_used_and_says_what_goes(first):
    # What goes is then version 2: version 1 has the same blobs as "words", and would free nothing.
    settled = settle("v1")
    for version in (settled.next, "words", settled.version):
        deploy(version, "--data", "verify=full")  # what is kept goes by when it was proven last
    previous = on(CANARY, f"cat {STORE}/previous").strip()
    third = next(r for r in on(CANARY, f"ls {STORE}/releases").split() if r not in (settled.release, previous))
    before = table(CANARY)
    dry = fleet("--dry", "tasks/prune.py", "--data", "keep_releases=1")
    assert dry.code == 0 and third[:12] in dry.said and dry.host(CANARY)["freed_bytes"] > 0, dry.said[-2000:]
    assert table(CANARY) == before
    # A process works in it: nothing in use is deleted.
    holder = subprocess.Popen(["docker", "exec", CANARY, "sh", "-c", f"cd {STORE}/releases/{third}/hub && sleep 600"])
    until("the directory is in use", lambda: "sleep 600" in on(CANARY, "ps ax"))
    kept = fleet("tasks/prune.py", "--data", "keep_releases=1", "--limit", CANARY)
    assert kept.code == 0 and third in on(CANARY, f"ls {STORE}/releases"), kept.said[-2000:]
    on(CANARY, "pkill sleep")
    holder.wait()
    run = fleet("tasks/prune.py", "--data", "keep_releases=1")
    assert run.code == 0, run.said[-2000:]
    assert run.host(CANARY)["freed_bytes"] == dry.host(CANARY)["freed_bytes"]
    assert set(on(CANARY, f"ls {STORE}/releases").split()) == {settled.release, previous}
    assert fleet("tasks/rollback.py").code == 0, "the previous release is whole"
    assert {current(name) for name in HOSTS} == {previous}


def test_a_lock_of_the_same_image_exports_nothing(settled):
    """20 GB of a real backend are not moved to learn that nothing moved."""
    layer = json.loads(LOCK.read_text())["image"]["layers"][0]["digest"][7:]
    look, before = f"stat -c '%n %i' {STORE}/blobs/*", LOCK.read_bytes()
    blobs = on(BASTION, look)
    assert fleet("tasks/lock.py").code == 0 and on(BASTION, look) == blobs
    on(BASTION, f"rm {STORE}/blobs/{layer}")
    assert fleet("tasks/lock.py").code == 0 and on(BASTION, look) != blobs
    assert on(BASTION, f"sha256sum {STORE}/blobs/{layer}").split()[0] == layer
    assert LOCK.read_bytes() == before
