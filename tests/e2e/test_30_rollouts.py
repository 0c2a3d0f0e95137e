"""Rollouts over four hosts: waves, self-revert, drain and readmit, embedding spaces. The service is light, all else is real."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.e2e.conftest import BASTION, ROOT, on
from tests.e2e.fleet import (
    CANARY,
    HOSTS,
    OTHERS,
    STORE,
    background,
    container,
    current,
    deploy,
    fleet,
    journal,
    lock_version,
    longest_gap,
    polled,
    settle,
    table,
    until,
    variant,
    weights,
)
from tests.lab import lab

THREE = ("--data", 'waves=[1, 1, "100%"]')
MIXED_REFUSED = ("--data", "embedding_space_change=refused")


@pytest.fixture(scope="module")
def rollout(first):
    """A good one, in three waves, while every host is asked every 100 ms; -> where it began, its Run, the answers, the old and new weights."""
    start = settle()
    old = weights(CANARY)
    with polled(*HOSTS) as answers:
        run = deploy(start.next, *THREE, "--data", "verify=full")  # every host has something to stage
    return start, run, answers, old, weights(CANARY)


def test_waves_go_one_after_the_other(rollout):
    run = rollout[1]
    assert run.report["plan"] == [[HOSTS[0]], [HOSTS[1]], HOSTS[2:]]
    times = {}
    for name in HOSTS:
        assert run.host(name)["state"] == "active" and run.host(name)["served_cosine"] > 0.999
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
    assert {current(name) for name in HOSTS} == {settled.release} != {run.report["release"]}
    assert {run.host(name)["release"] for name in HOSTS} == {settled.release}, "each row says what serves"
    for name in OTHERS:
        assert len(answers[name]) > 10 and {said for _, said in answers[name]} == {old}
    assert weights(CANARY) == old
    assert "withdrawn" in [entry["step"] for entry in journal(CANARY)][-2:]
    assert f"{CANARY}: withdrawn" in run.said and "Run again, once fixed: pyinfra -y" in run.said
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


def test_status_says_where_other_settings_were_confirmed(settled):
    assert "other settings" not in fleet("tasks/status.py").said
    deploy(None, "--limit", CANARY, "--data", 'environment={"X": "3"}')
    status = fleet("tasks/status.py")
    assert status.code == 0 and f"other settings than in git: {CANARY}\n" in status.said, status.said[-2000:]


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
        went = {entry["phase"]: entry["ok"] for entry in run.host(CANARY)["phases"]}
        assert went["withdraw"] and run.host(CANARY)["release"] == settled.release, "going back is what went well"


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
            fit = fleet("tasks/preflight.py", inventory=inventory)
            back = fleet("--dry", "tasks/rollback.py", inventory=inventory)
        finally:
            lab.run("docker", "unpause", "lab-gpu4")
    assert run.code == 0, run.said[-2000:]
    assert run.report["plan"][0] == ["lab-gpu3"] and all("lab-gpu4" not in wave for wave in run.report["plan"])
    assert run.host("lab-gpu4")["state"] == "out of service" and "its fan is broken" in run.said
    assert status.host("lab-gpu4")["why"] == "out of service: its fan is broken"
    assert current("lab-gpu4") == settled.release != current("lab-gpu3")
    assert fit.code == 0 and fit.host("lab-gpu4")["state"] == "out of service", fit.said[-2000:]
    assert back.report["plan"] == [HOSTS[:3]], "going back is at once, whatever is first on the way forward"
    back = deploy(None, *MIXED_REFUSED)  # it ends a mix, and makes none
    assert back.host("lab-gpu4")["state"] == "active" and back.host("lab-gpu3")["state"] == "unchanged"


def test_a_service_that_loses_its_network_after_the_probe_is_not_confirmed(settled):
    lock_version(settled.next)
    running = background("deploy.py", "--data", "soak=6")
    until("the canary soaks", lambda: journal(CANARY)[-1]["step"] == "soak")
    on(CANARY, f"docker network disconnect -f light_default {container(CANARY)}")
    assert running.wait(timeout=120) == 1
    assert journal(CANARY)[-1]["step"] == "withdrawn" and current(CANARY) == settled.release
    assert weights(CANARY) == weights(HOSTS[3]), "the old release answers"


def test_a_service_that_restarts_after_its_confirmation_stops_the_waves_to_come(settled):
    lock_version(settled.next)
    untouched = [container(name) for name in HOSTS[2:]]
    running = background(
        "deploy.py", "--data", "waves=[1, 1, 2]", "--data", "soak=6", "--data", "on_failure=withdraw-all"
    )
    until("the second wave soaks", lambda: journal(HOSTS[1])[-1]["step"] == "soak", within=120)
    on(CANARY, f"docker restart {container(CANARY)}")
    assert running.wait(timeout=120) == 1
    hosts = json.loads((ROOT / "reports/last.json").read_text())["hosts"]
    assert [hosts[name]["state"] for name in HOSTS] == ["withdrawn", "withdrawn", "held", "held"]
    assert "does not serve as it was confirmed" in hosts[CANARY]["why"] and hosts[HOSTS[2]]["why"].startswith(
        f"held: {CANARY}"
    )
    assert [container(name) for name in HOSTS[2:]] == untouched
    assert {current(name) for name in HOSTS} == {settled.release} and hosts[CANARY]["release"] == settled.release


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


def test_a_host_that_was_not_readmitted_is_told_and_readmitted_by_the_next_deploy(settled):
    words = ("deploy.py", "--limit", CANARY, "--data", 'environment={"X": "2"}')
    run = fleet(*words, "--data", "readmit=exit 3")
    assert run.code == 1 and run.host(CANARY)["state"] == "active" and run.host(CANARY)["not_readmitted"]
    status = fleet("tasks/status.py")
    assert status.code == 1 and "was not readmitted" in status.host(CANARY)["why"]
    again = fleet(*words, "--data", "readmit=touch /tmp/back")
    assert again.code == 0 and again.host(CANARY)["state"] == "active", again.said[-2000:]
    assert on(CANARY, "rm -v /tmp/back") and fleet("tasks/status.py").code == 0


def test_a_slow_drain_costs_the_service_none_of_its_time_and_what_it_leaves_running_holds_nothing_up(settled):
    lock_version(settled.next)
    drained = {"drain": "sleep 600 & sleep 15", "health_deadline": 15}
    with variant(lab_gpu1=drained) as inventory:
        run = fleet("deploy.py", "--limit", BASTION, "--limit", CANARY, inventory=inventory)
    on(CANARY, "pkill -f 'sleep 60[0]'")
    assert run.code == 0 and run.host(CANARY)["state"] == "active", run.said[-2000:]
    assert 15 <= run.host(CANARY)["switch_seconds"] < 60


def test_a_disk_that_fills_up_after_the_drain_keeps_no_host_from_being_readmitted(settled):
    lock_version(settled.next)
    log = f"{STORE}/journal.jsonl"
    drain = f"mv {log} {log}.away; ln -s /dev/full {log}"
    readmit = f"rm {log}; mv {log}.away {log}; echo readmitted > /tmp/lb"
    run = fleet("deploy.py", "--data", f"drain={drain}", "--data", f"readmit={readmit}")
    assert run.code == 1 and run.host(CANARY)["state"] == "withdrawn" and log in run.host(CANARY)["why"]
    assert on(CANARY, f"cat /tmp/lb; ls {STORE}/state").split()[0] == "readmitted"
    assert "pending" not in on(CANARY, f"ls {STORE}/state") and current(CANARY) == settled.release
    assert fleet("tasks/status.py").code == 0


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
    on(CANARY, f": > {STORE}/state/frozen")  # whatever became of the reason
    assert "is frozen" in fleet("tasks/status.py").host(CANARY)["why"]
    on(CANARY, f"cp /tmp/stack {path}; rm {STORE}/state/frozen")
    assert deploy().host(CANARY)["state"] == "active"


def test_a_change_of_the_embedding_space_is_refused_until_the_operator_says_how(settled):
    lock_version(settled.next)
    ids = [container(name) for name in HOSTS]
    run = fleet("deploy.py", *MIXED_REFUSED)
    assert run.code == 1 and {run.host(name)["state"] for name in HOSTS} == {"unfit"}
    assert "embedding space" in run.host(CANARY)["why"] and [container(name) for name in HOSTS] == ids
    some = fleet("--dry", "deploy.py", *MIXED_REFUSED, "--data", 'waves=["100%"]', "--data", "max_failed_hosts=1")
    assert some.code == 1 and "max_failed_hosts = 0" in some.host(CANARY)["why"], (
        "the one that fails would answer in the old"
    )
    once = fleet("deploy.py", *MIXED_REFUSED, "--data", 'waves=["100%"]')
    assert once.code == 0, once.said[-2000:]


def test_a_commit_that_changes_only_a_readme_is_the_same_space(first):
    start = settle("v1")
    run = deploy("words", *MIXED_REFUSED)
    assert run.report["release"] != start.release and run.host(CANARY)["moved_bytes"] == 0


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
