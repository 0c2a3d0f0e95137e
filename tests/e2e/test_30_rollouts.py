"""Rollouts over four hosts: their lock, waves, self-revert, rollback, leases, status, prune. The service is light, all else is real."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time

import pytest

from tests.e2e.conftest import BASTION, ROOT, command, hub, on
from tests.e2e.fleet import (
    CANARY,
    HOSTS,
    INVENTORY,
    LOCK,
    OTHERS,
    REPO,
    STORE,
    container,
    current,
    deploy,
    fleet,
    journal,
    lock_version,
    longest_gap,
    polled,
    refs,
    settle,
    until,
    variant,
    weights,
)
from tests.lab import lab

THREE = ("--data", 'waves=[1, 1, "100%"]')
MIXED_REFUSED = ("--data", "embedding_space_change=refused")


@pytest.fixture(scope="module")
def first():
    """Four hosts that had nothing, and two versions proven."""
    lab.up(4)
    hub("reset", {})
    for path in (LOCK, LOCK.with_name("lab_fleet.goldens.json")):
        path.unlink(missing_ok=True)
    for name in [BASTION, *HOSTS]:
        on(name, f"rm -rf {STORE}; docker rm -f light-backend-1 2>/dev/null; rm -f /srv/light/*override*")
    hub("refs", {REPO: {"main": refs()["v1"]}})
    assert fleet("tasks/lock.py").code == 0
    for version in ("v1", "v2"):  # each is proven once
        deploy(version, "--data", 'waves=["100%"]')


@pytest.fixture
def settled(first):
    """Every host in order on one release, whatever a test left."""
    return settle()


@pytest.fixture(scope="module")
def rollout(first):
    """A good one, in three waves, while every host is asked every 100 ms; -> where it began, its Run, the answers, the old and new weights."""
    start = settle()
    old = weights(CANARY)
    with polled(*HOSTS) as answers:
        run = deploy(start.next, *THREE, "--data", "verify=full")  # every host has something to stage
    return start, run, answers, old, weights(CANARY)


def table(name: str, script: str = "") -> str:
    return on(
        name,
        f"find {STORE} -type f ! -name '.*lock' -printf '%p %T@ %s\\n' | sort; cat /srv/light/*override*; {script}",
    )


def test_waves_go_one_after_the_other(rollout):
    run = rollout[1]
    assert run.report["plan"] == [[HOSTS[0]], [HOSTS[1]], HOSTS[2:]]
    times = {}
    for name in HOSTS:
        assert run.host(name)["state"] == "active"
        times[name] = next(p for p in run.host(name)["phases"] if p["phase"] == "activate")
        staged = next(p for p in run.host(name)["phases"] if p["phase"] == "stage")
        assert staged["end"] <= times[CANARY]["start"], "staging on all hosts comes before the first switch"
    assert times[HOSTS[0]]["end"] <= times[HOSTS[1]]["start"]
    assert times[HOSTS[1]]["end"] <= min(times[name]["start"] for name in HOSTS[2:])
    assert len({weights(name) for name in HOSTS}) == 1


def test_the_old_model_answers_on_untouched_hosts_all_the_while(rollout):
    _, run, answers, old, new = rollout
    assert new != old
    for name in HOSTS:
        start = next(p for p in run.host(name)["phases"] if p["phase"] == "activate")["start"]
        before = [said for when, said in answers[name] if when < start]
        assert len(before) > 5 and set(before) == {old}
        assert answers[name][-1][1] == new
    print(f"longest gap on the canary: {longest_gap(answers[CANARY]):.2f} s")


def test_the_page_is_self_contained(rollout):
    named = re.findall(r"reports/\S+\.html", rollout[1].said)
    page = (ROOT / named[-1]).read_text()
    assert "<svg" in page and "lab-gpu3 (wave 3)" in page and "<script" not in page
    for word in ('src="', "url(http", "@import", "<link"):
        assert word not in page
    assert time.strftime("%Y-%m-%d", time.gmtime()) in page


def test_its_smoke_tests_leave_no_network_behind(rollout):
    """An engine has addresses for some thirty, and every release would take one."""
    for name in HOSTS:
        assert "hf-smoke" not in on(name, "docker network ls --format '{{.Name}}'")
        assert "light_default" in on(name, "docker network ls --format '{{.Name}}'")


def test_a_second_run_changes_nothing(settled):
    before = [table(name, "docker ps -q --no-trunc") for name in HOSTS]
    run = fleet("deploy.py")
    assert run.code == 0 and {run.host(name)["state"] for name in HOSTS} == {"unchanged"}
    assert not re.search(r"\]\s+Success", run.said) and re.search(r"\]\s+No changes", run.said)
    assert [table(name, "docker ps -q --no-trunc") for name in HOSTS] == before


BAD = {
    "a model that is not the release's": {"environment": {"FAULT": "wrong"}},
    "a backend that dies after a while": {"environment": {"FAULT": "die:4"}, "soak": 8},
    "a service that never gets healthy": {"environment": {"FAULT": "sick"}},
    "a compose setting that breaks it": {"harden": True},
}
SAYS = {
    "a model that is not the release's": "embeds otherwise than the goldens",
    "a backend that dies after a while": "did not stay up",
    "a service that never gets healthy": "is unhealthy",
    "a compose setting that breaks it": "a healthy container",
}


@pytest.mark.parametrize("what", BAD)
def test_the_canary_withdraws(settled, what):
    lock_version(settled.next)
    old = weights(CANARY)
    ids = {name: container(name) for name in OTHERS}
    more = [word for key, value in BAD[what].items() for word in ("--data", f"{key}={json.dumps(value)}")]
    with polled(*HOSTS) as answers:
        run = fleet("deploy.py", *more)
    assert run.code == 1
    assert run.host(CANARY)["state"] == "withdrawn" and SAYS[what] in run.host(CANARY)["why"]
    assert {run.host(name)["state"] for name in OTHERS} == {"held"}
    assert {name: container(name) for name in OTHERS} == ids
    assert {current(name) for name in HOSTS} == {settled.release}
    for name in OTHERS:
        assert len(answers[name]) > 10 and {said for _, said in answers[name]} == {old}
    assert weights(CANARY) == old
    assert "withdrawn" in [entry["step"] for entry in journal(CANARY)][-2:]
    assert f"{CANARY}: withdrawn" in run.said and "Again, when mended: pyinfra -y" in run.said
    print(f"{what}: longest gap on the canary {longest_gap(answers[CANARY]):.2f} s")


def test_settings_that_are_turned_down_leave_the_same_release_in_order(settled):
    ids = {name: container(name) for name in HOSTS}
    run = fleet("deploy.py", "--data", 'environment={"FAULT": "wrong"}')
    assert run.code == 1 and run.report["release"] == settled.release
    assert [run.host(name)["state"] for name in HOSTS] == ["withdrawn", "held", "held", "held"]
    status = fleet("tasks/status.py")
    assert status.code == 0, status.said[-2000:]
    again = fleet("tasks/rollback.py", "--data", f"release={settled.release}")
    assert again.code == 0 and {again.host(name)["state"] for name in HOSTS} == {"unchanged"}, again.said[-2000:]
    assert {name: container(name) for name in OTHERS} == {name: ids[name] for name in OTHERS}


def test_a_first_deploy_that_fails_leaves_no_half_service(settled):
    on(CANARY, f"rm -rf {STORE}; docker rm -f light-backend-1; rm -f /srv/light/*override*")
    run = fleet("deploy.py", "--data", 'environment={"FAULT": "sick"}')
    assert run.code == 1 and run.host(CANARY)["state"] == "withdrawn"
    assert container(CANARY) == "" and "override" not in on(CANARY, "ls /srv/light")
    assert deploy().host(CANARY)["state"] == "active"


def test_max_failed_hosts_lets_the_rollout_go_on_and_the_report_says_so(settled):
    lock_version(settled.next)
    with variant(lab_gpu2={"environment": {"FAULT": "sick"}}) as inventory:
        run = fleet("deploy.py", "--data", "max_failed_hosts=1", inventory=inventory)
    assert run.code == 1
    states = [run.host(name)["state"] for name in HOSTS]
    assert states == ["active", "withdrawn", "active", "active"]
    status = fleet("tasks/status.py")
    assert status.code == 1 and "2 embedding spaces" in status.said, "a mixed fleet is not in order"


@pytest.mark.parametrize(
    ("on_failure", "expected"),
    [
        ("stop", ["active", "withdrawn", "held", "held"]),
        ("withdraw-all", ["withdrawn", "withdrawn", "held", "held"]),
    ],
)
def test_what_happens_to_earlier_waves_is_the_operators_choice(settled, on_failure, expected):
    lock_version(settled.next)
    with variant(lab_gpu2={"environment": {"FAULT": "sick"}}) as inventory:
        run = fleet("deploy.py", *THREE, "--data", f"on_failure={on_failure}", inventory=inventory)
    assert run.code == 1 and [run.host(name)["state"] for name in HOSTS] == expected
    moved = {name for name in HOSTS if current(name) != settled.release}
    assert moved == ({CANARY} if on_failure == "stop" else set())
    if on_failure == "withdraw-all":
        assert "lab-gpu2 failed" in run.host(CANARY)["why"]


def test_withdraw_wave_takes_back_the_hosts_of_the_failed_wave(settled):
    lock_version(settled.next)
    with variant(lab_gpu4={"environment": {"FAULT": "sick"}}) as inventory:
        run = fleet("deploy.py", *THREE, "--data", "on_failure=withdraw-wave", inventory=inventory)
    assert [run.host(name)["state"] for name in HOSTS] == ["active", "active", "withdrawn", "withdrawn"]
    assert current(HOSTS[2]) == current(HOSTS[3]) == settled.release != current(CANARY)


def test_a_host_says_its_wave_and_one_out_of_service_is_left_out_and_caught_up(settled):
    lock_version(settled.next)
    with variant(lab_gpu3={"wave": 1}, lab_gpu4={"out_of_service": "its fan is broken"}) as inventory:
        lab.run("docker", "pause", "lab-gpu4")  # left out means that it may as well be off
        try:
            run = fleet("deploy.py", inventory=inventory)
            status = fleet("tasks/status.py", inventory=inventory)
        finally:
            lab.run("docker", "unpause", "lab-gpu4")
    assert run.code == 0, run.said[-2000:]
    assert run.report["plan"][0] == ["lab-gpu3"] and all("lab-gpu4" not in wave for wave in run.report["plan"])
    assert run.host("lab-gpu4")["state"] == "out of service" and "its fan is broken" in run.said
    assert status.host("lab-gpu4")["why"] == "out of service: its fan is broken"
    assert current("lab-gpu4") == settled.release != current("lab-gpu3")
    back = deploy()
    assert back.host("lab-gpu4")["state"] == "active" and back.host("lab-gpu3")["state"] == "unchanged"


def test_drain_and_readmit_run_around_the_switch(settled):
    on(CANARY, "rm -f /tmp/lb")
    lock_version(settled.next)
    note = "echo {} $(docker ps -q --no-trunc --filter label=com.docker.compose.project=light) >> /tmp/lb"
    words = [w for key in ("drain", "readmit") for w in ("--data", f"{key}={note.format(key)}")]
    before = container(CANARY)
    run = fleet("deploy.py", *words)
    assert run.code == 0, run.said[-2000:]
    assert on(CANARY, "cat /tmp/lb").split() == ["drain", before, "readmit", container(CANARY)]
    failing = fleet("deploy.py", "--data", "drain=exit 7", "--data", 'environment={"X": "1"}')
    assert failing.code == 1 and "drain command" in failing.host(CANARY)["why"]
    assert "code 7" in failing.host(CANARY)["why"] and failing.host(CANARY)["state"] == "withdrawn"


def test_who_cannot_log_in_again_gets_the_old_release_back(settled):
    lock_version(settled.next)
    old = weights(CANARY)
    # The open connection goes on; a new one is dropped, as after a mistake in a firewall. Readmit mends it.
    rule = "INPUT -p tcp --dport 22 --syn -j DROP"
    run = fleet("deploy.py", "--data", f"drain=iptables -I {rule}", "--data", f"readmit=iptables -D {rule}")
    assert run.code == 1 and "takes no new connection" in run.host(CANARY)["why"]
    until("the canary goes back by itself", lambda: journal(CANARY)[-1]["step"] == "withdrawn")
    assert current(CANARY) == settled.release and weights(CANARY) == old
    assert {run.host(name)["state"] for name in OTHERS} == {"held"}


def test_a_revert_that_fails_freezes_the_host_and_stops_the_fleet(settled):
    lock_version(settled.next)
    path = "/srv/light/docker-compose.yml"
    on(CANARY, f"cp {path} /tmp/stack; sed -i 's/    init: true/    command: [nonsense]/' {path}")
    run = fleet("deploy.py")
    assert run.code == 1 and run.host(CANARY)["state"] == "frozen"
    assert {run.host(name)["state"] for name in OTHERS} == {"held"}
    again = fleet("deploy.py")
    assert again.code == 1 and "is frozen" in again.host(CANARY)["why"]
    assert "nonsense" in json.loads(on(CANARY, f"cat {STORE}/state/frozen"))["why"]
    on(CANARY, f"cp /tmp/stack {path}; rm {STORE}/state/frozen")
    assert deploy().host(CANARY)["state"] == "active"


def test_a_change_of_the_embedding_space_is_refused_until_the_operator_says_how(settled):
    lock_version(settled.next)
    ids = [container(name) for name in HOSTS]
    run = fleet("deploy.py", *MIXED_REFUSED)
    assert run.code == 1 and {run.host(name)["state"] for name in HOSTS} == {"unfit"}
    assert "embedding space" in run.host(CANARY)["why"] and [container(name) for name in HOSTS] == ids
    once = fleet("deploy.py", *MIXED_REFUSED, "--data", 'waves=["100%"]')
    assert once.code == 0, once.said[-2000:]


def test_a_commit_that_changes_only_a_readme_is_the_same_space(first):
    start = settle("v1")
    run = deploy("words", *MIXED_REFUSED)
    assert run.report["release"] != start.release and run.host(CANARY)["moved_bytes"] == 0


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
    assert {status.host(name)["state"] for name in direct} == {"in order"}
    assert {current(name) for name in direct} == {settled.release} and current("lab-gpu2") == new
    assert {run.host(name)["state"] for name in direct} == {"active"}
    rest = fleet("tasks/rollback.py", "--limit", "lab-gpu2")
    assert rest.code == 0 and len({weights(name) for name in HOSTS}) == 1


def test_rollback_moves_nobody_when_one_host_lacks_its_target(settled):
    new = deploy(settled.next).report["release"]
    victim = HOSTS[3]
    old_blobs = json.loads(on(victim, f"cat {STORE}/releases/{settled.release}/lock.json"))["models"][0]["files"]
    blob = old_blobs["model.safetensors"]["sha256"]
    on(victim, f"chmod u+w {STORE}/blobs/{blob}; printf x | dd of={STORE}/blobs/{blob} conv=notrunc bs=1 seek=99 2>&1")
    ids = [container(name) for name in HOSTS]
    run = fleet("tasks/rollback.py")
    assert run.code == 1 and "is not intact" in run.host(victim)["why"]
    assert {run.host(name)["state"] for name in HOSTS[:3]} == {"held"}
    assert [container(name) for name in HOSTS] == ids and {current(name) for name in HOSTS} == {new}


def test_rollback_to_a_release_by_its_id(settled):
    deploy(settled.next)
    deploy("words")
    run = fleet("tasks/rollback.py", "--data", f"release={settled.release}")
    assert run.code == 0 and {current(name) for name in HOSTS} == {settled.release}, run.said[-2000:]
    nowhere = fleet("tasks/rollback.py", "--data", f"release={'f' * 64}")
    assert nowhere.code == 1 and "is not one release of this host" in nowhere.host(CANARY)["why"]
    assert {current(name) for name in HOSTS} == {settled.release}


def test_rollback_never_reports_success_for_a_host_that_did_not_move(settled):
    deploy(settled.next)
    on(HOSTS[2], f"rm {STORE}/previous")
    run = fleet("tasks/rollback.py")
    assert run.code == 1 and "has nowhere to go" in run.host(HOSTS[2])["why"]
    assert settled.release not in {current(name) for name in HOSTS}


# -------------------------------------------------------------------------------------------------------------- leases


def background(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(*words, inventory=INVENTORY), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


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
        assert leased(CANARY)["release"] in fleet("tasks/status.py").said + leased(CANARY)["release"]
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    until("the lease ends with its controller", lambda: not any(leased(name) for name in HOSTS))
    run = deploy()  # goes on from the hosts' journals, and waits for an activation that puts itself back
    assert {current(name) for name in HOSTS} == {run.report["release"]} != {settled.release}


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
    assert "x0000abcd eve@laptop" in fleet("tasks/status.py").host(HOSTS[2])["lease"]
    assert fleet("tasks/unlock.py", "--data", "lease=x0000abcd").code == 0
    assert journal(HOSTS[2])[-1]["step"] == "unlock" and journal(HOSTS[2])[-1]["lease"]["who"] == "eve@laptop"
    deploy()


# ------------------------------------------------------------------------------------------------------ status, verify


def test_status_changes_nothing_and_tells_what_runs(settled):
    before = [table(name, "docker ps -q --no-trunc") for name in HOSTS]
    run = fleet("tasks/status.py")
    assert run.code == 0, run.said[-2000:]
    for name in HOSTS:
        row = run.host(name)
        assert (row["state"], row["release"], row["container"]) == ("in order", settled.release, "healthy")
        assert row["cosine"] == 1.0 and row["since"] and row["verified"] and row["disk_free_bytes"] > 0
    assert [table(name, "docker ps -q --no-trunc") for name in HOSTS] == before


DRIFT = {
    "the override beside the stack is not the release's": "echo '# mine' >> /srv/light/docker-compose.override.yml",
    "the service is exited": "docker stop -t 1 light-backend-1",
    "blobs are missing": f"rm $(ls {STORE}/blobs/* | head -1)",
    "another environment: HF_HUB_OFFLINE": "cd /srv/light && sed -i 's/HF_HUB_OFFLINE: .1./HF_HUB_OFFLINE: \"0\"/' "
    "docker-compose.override.yml && docker compose up -d --pull never 2>&1",
}


@pytest.mark.parametrize("what", DRIFT)
def test_status_names_drift(settled, what):
    on(CANARY, DRIFT[what])
    run = fleet("tasks/status.py")
    assert run.code == 1 and run.host(CANARY)["state"] == "drifted" and what in run.host(CANARY)["why"]
    assert {run.host(name)["state"] for name in OTHERS} == {"in order"}


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
        deploy(version)
    previous = on(CANARY, f"cat {STORE}/previous").strip()
    third = next(r for r in on(CANARY, f"ls {STORE}/releases").split() if r not in (settled.release, previous))
    before = table(CANARY)
    dry = fleet("--dry", "tasks/prune.py", "--data", "keep_releases=1")
    assert dry.code == 0 and third[:12] in dry.said and dry.host(CANARY)["freed_bytes"] > 0, dry.said[-2000:]
    assert table(CANARY) == before
    # A process works in it: nothing in use is deleted.
    holder = subprocess.Popen(["docker", "exec", CANARY, "sh", "-c", f"cd {STORE}/releases/{third}/hub && sleep 60"])
    until("the directory is in use", lambda: "sleep 60" in on(CANARY, "ps ax"))
    kept = fleet("tasks/prune.py", "--data", "keep_releases=1", "--limit", CANARY)
    assert kept.code == 0 and third in on(CANARY, f"ls {STORE}/releases"), kept.said[-2000:]
    on(CANARY, "pkill sleep || true")
    holder.wait()
    run = fleet("tasks/prune.py", "--data", "keep_releases=1")
    assert run.code == 0, run.said[-2000:]
    assert run.host(CANARY)["freed_bytes"] == dry.host(CANARY)["freed_bytes"]
    assert set(on(CANARY, f"ls {STORE}/releases").split()) == {settled.release, previous}
    assert fleet("tasks/rollback.py").code == 0, "the previous release is whole"
    assert {current(name) for name in HOSTS} == {previous}


def test_a_reboot_in_the_middle_comes_up_old_or_new(settled):
    lock_version(settled.next)
    running = background("deploy.py", "--data", "soak=20")
    until("the canary is being switched", lambda: journal(CANARY)[-1]["step"] == "soak")
    lab.run("docker", "kill", CANARY)
    running.wait()
    lab.up(4)
    until("the host ends what was pending", lambda: journal(CANARY)[-1]["step"] == "withdrawn", within=90)
    assert current(CANARY) == settled.release
    until("the old model answers", lambda: weights(CANARY) == weights(OTHERS[0]))
    deploy()


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
