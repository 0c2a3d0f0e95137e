"""The opening of a command: what would defeat the gates or mean nobody is refused before any host is touched."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import ExitStack

import gevent
import pytest
from pyinfra import logger
from pyinfra.api import Config, Inventory, State
from pyinfra.api.exceptions import PyinfraError
from pyinfra.context import ctx_inventory, ctx_state

from tasks.control import opening
from tasks.control.command_line import CommandLine
from tasks.control.opening import About, as_pyinfra_error, open_run, report_unreachable
from tasks.control.reporting.recorder import FOLDER, Unreached
from tasks.control.reporting.table import DEPLOY, STATUS
from tasks.control.rules.states import State as HostState
from tasks.shared.errors import Refused
from tests.unit.control.harness import used

DEPLOY_WORDS = ("-y", "inventories/prod.py", "deploy.py")


@pytest.fixture
def opened(values, desk, monkeypatch):
    """opened(words, …): a command on a bastion and three GPU hosts, as pyinfra makes them: nobody is connected.

    hosts: {name: its data}. groups: {group: its data}. data: --data. limit: the hosts of --limit.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    filters = list(logger.filters)
    stack = ExitStack()

    def make(words=DEPLOY_WORDS, hosts=None, groups=None, data=None, limit=None, bastions=("bastion",)):
        monkeypatch.setattr(sys, "argv", ["pyinfra", *words])
        gpus = {name: (hosts or {}).get(name, {}) for name in ("gpu-1", "gpu-2", "gpu-3")}
        names = [(name, (hosts or {}).get(name, {})) for name in (*bastions, *gpus)]
        layers = {"bastion": (list(bastions), {}), "gpu_hosts": (list(gpus), {}), **(groups or {})}
        inventory = Inventory((names, values), override_data=data or {}, **layers)
        state = State(inventory, Config())
        state.check_for_changes = False  # as with -y
        if limit is not None:
            state.limit_hosts = [inventory.get_host(name) for name in limit]
        stack.enter_context(used(ctx_inventory, inventory))
        stack.enter_context(used(ctx_state, state))
        return state

    yield make
    stack.close()
    logger.filters[:] = filters
    for number, handler in before.items():
        signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------------------ one run


def test_all_hosts_of_a_command_get_the_same_run(opened):
    state, calls = opened(), []
    first = open_run(calls.append)
    assert open_run(calls.append) is first and calls == [first]
    assert first.gpus == ["gpu-1", "gpu-2", "gpu-3"] and first.everyone[0] == "bastion" and first.whole_fleet
    assert first.reported == ["bastion", "gpu-1", "gpu-2", "gpu-3"] and first.failed() == set()
    assert len(state.callback_handlers) == 2 and not state.check_for_changes


def test_hosts_that_load_a_command_at_the_same_time_get_one_run(opened):
    """pyinfra loads it in a greenlet a host, and reading a signature lets the next one go on."""
    state, calls = opened(), []

    def slowly(run):
        calls.append(run)
        gevent.sleep(0.01)

    loads = [gevent.spawn(open_run, slowly) for _ in range(3)]
    gevent.joinall(loads, raise_error=True)
    assert len(calls) == 1 and all(each.value is calls[0] for each in loads)
    assert len(state.callback_handlers) == 2


def test_a_dry_run_asks_operations_what_they_would_change(opened):
    assert opened(words=("--dry", *DEPLOY_WORDS[1:])) and open_run().command_line.dry
    assert opening.state.check_for_changes


def test_the_strongest_layer_of_a_hosts_settings_comes_first(opened):
    opened(
        hosts={"gpu-1": {"soak": 11}},
        groups={"rack": (["gpu-1", "gpu-2"], {"soak": 22, "health_deadline": 99})},
        data={"confirm_deadline": 7},
    )
    run = open_run()
    first, second, third = (run.hosts[name].settings for name in run.gpus)
    assert (first.soak, second.soak, third.soak) == (11, 22, 30)
    assert (first.health_deadline, third.health_deadline) == (99, 600)
    assert {each.confirm_deadline for each in (first, second, third, run.settings)} == {7}


def test_hosts_that_pyinfra_drops_are_failed_ones(opened):
    state = opened()
    run = open_run()
    state.failed_hosts.add(state.inventory.get_host("gpu-2"))
    assert run.failed() == {"gpu-2"} and run.is_executing() is False


def test_a_wave_and_a_place_out_of_service_are_a_hosts_own(opened):
    state = opened(hosts={"gpu-1": {"out_of_service": "fan"}, "gpu-3": {"wave": 1}})
    state.failed_hosts.add(state.inventory.get_host("gpu-1"))
    run = open_run()
    assert run.gpus == ["gpu-2", "gpu-3"] and run.fleet == ["gpu-2", "gpu-3"] and run.plan_waves([1])[0] == ["gpu-3"]
    me = run.hosts["gpu-1"]
    assert (me.state, me.why) == (HostState.OUT_OF_SERVICE, "out of service: fan") and run.reported[-1] == "gpu-1"
    assert not state.failed_hosts, "it may be silent"


# ------------------------------------------------------------------------------------------------------- who is meant


def test_a_limit_leaves_hosts_out_and_keeps_the_bastion_in_reach(opened):
    opened(words=(*DEPLOY_WORDS, "--limit", "gpu-1"), limit=["gpu-1"])
    run = open_run()
    assert run.gpus == run.everyone == run.reported == ["gpu-1"] and not run.whole_fleet
    assert run.bastion.name == "bastion" and not run.bastion.in_limit


@pytest.mark.parametrize("words", [("--limit", "gpu-9"), ("--exclude=gpu-9",), ("--limit", "gpu-1,gpu-2")])
def test_a_limit_that_means_nobody_is_a_typing_error(opened, words):
    opened(words=(*DEPLOY_WORDS, *words))
    with pytest.raises(PyinfraError, match=r"matches no host and no group of inventories/prod\.py"):
        open_run()


@pytest.mark.parametrize("words", [("--limit", "gpu-1"), ("--exclude=gpu_hosts",), ("--limit", "gpu-*")])
def test_a_limit_that_means_somebody_is_taken(opened, words):
    opened(words=(*DEPLOY_WORDS, *words))
    assert open_run().command_line.has_limit


@pytest.mark.parametrize(
    ("about", "limit", "said"),
    [
        (About.BASTION, ["gpu-1"], "about bastion, which --limit leaves out"),
        (About.GPUS, ["bastion"], "about GPU hosts, and none is meant"),
        (About.ALL, [], "no host of this inventory is meant"),
    ],
)
def test_a_command_that_is_about_nobody_is_refused(opened, about, limit, said):
    opened(limit=limit)
    with pytest.raises(PyinfraError, match=said):
        open_run(about=about)


@pytest.mark.parametrize(
    ("about", "silent", "reported"),
    [
        (About.ALL, [], ["bastion", "gpu-1", "gpu-2", "gpu-3"]),
        (About.GPUS, ["bastion"], ["gpu-1", "gpu-2", "gpu-3"]),
        (About.BASTION, ["gpu-1", "gpu-2", "gpu-3"], ["bastion"]),
        (lambda settings: About.BASTION, ["gpu-1", "gpu-2", "gpu-3"], ["bastion"]),
    ],
)
def test_hosts_that_a_command_is_not_about_may_be_silent(opened, about, silent, reported):
    state = opened()
    everyone = set(state.inventory)
    state.failed_hosts |= everyone
    run = open_run(about=about)
    assert {host.name for host in everyone - state.failed_hosts} == set(silent) and run.reported == reported


@pytest.mark.parametrize("bastions", [(), ("bastion", "second")])
def test_an_inventory_has_one_bastion_or_is_refused_in_words(opened, bastions):
    opened(bastions=bastions)
    with pytest.raises(PyinfraError, match=f"has {len(bastions)} hosts; expected exactly one"):
        open_run()


# ------------------------------------------------------------------------------------------------------------ refusals


def test_two_commands_are_two_runs(opened):
    opened(words=("-y", "inventories/prod.py", "tasks/status.py", "tasks/prune.py"))
    with pytest.raises(PyinfraError, match=r"one command at a time; found tasks/status\.py, tasks/prune\.py\. Next: "):
        open_run()


def test_no_run_is_open_where_the_inventory_did_not_load():
    assert opening.recorder_of(object()) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--serial",), "--serial would defeat the gates"),
        (("--no-wait",), "--no-wait would defeat the gates"),
        (("--fail-percent=50",), "--fail-percent would defeat the gates"),
        (("--sudo",), r'--sudo does not reach .*"_sudo": True'),
        (("--use-sudo-login",), "--use-sudo-login does not reach"),
        (("--su-user", "x"), "--su-user does not reach"),
    ],
)
def test_flags_that_defeat_the_gates_or_do_not_reach_are_refused(opened, words, said):
    opened(words=(*DEPLOY_WORDS, *words))
    with pytest.raises(PyinfraError, match=said):
        open_run()


@pytest.mark.parametrize(("key", "command"), sorted(opening.FOR_ONE_COMMAND.items()))
def test_data_for_one_command_is_refused_by_every_other(opened, key, command):
    values = {"verify": "full", "update": True, "sample": 5, "release": "abc", "lease": "x12345678"}
    other = "tasks/status.py"
    opened(words=("-y", "inventories/prod.py", other), data={key: values.get(key, "x")})
    with pytest.raises(PyinfraError, match=f"--data {key} is for {command}, and has no effect here"):
        open_run()
    opened(words=("-y", "inventories/prod.py", command), data={key: values.get(key, "x")})
    assert open_run().settings is not None


def test_data_that_is_empty_or_meant_for_one_host_is_refused(opened):
    opened(words=("-y", "i.py", "tasks/rollback.py"), data={"release": ""})
    with pytest.raises(PyinfraError, match="--data release is empty"):
        open_run()
    for key, value in (("wave", 1), ("out_of_service", "fan")):
        opened(data={key: value})
        with pytest.raises(PyinfraError, match=f"--data {key} would be every host's"):
            open_run()


@pytest.mark.parametrize(
    ("key", "value"), [("dtype", "float32"), ("waves", [3]), ("sign", True), ("on_failure", "withdraw-all")]
)
def test_what_is_one_for_the_whole_rollout_is_the_same_on_every_host(opened, key, value):
    opened(hosts={"gpu-2": {key: value}})
    with pytest.raises(PyinfraError, match=rf"{key} must be the same on all hosts; .* on gpu-2\. Next: group_data/"):
        open_run()
    opened(groups={"all_hosts": (["bastion", "gpu-1", "gpu-2", "gpu-3"], {key: value})})
    assert getattr(open_run().settings, key) == value


@pytest.mark.parametrize(("delivery", "refused"), [("bake", True), ("mount", False)])
def test_where_the_cache_lies_is_the_same_on_every_host_where_it_is_part_of_the_image(opened, delivery, refused):
    opened(
        groups={"all": (["bastion", "gpu-1", "gpu-2", "gpu-3"], {"delivery": delivery})},
        hosts={"gpu-2": {"hf_home": "/x"}},
    )
    if refused:
        with pytest.raises(PyinfraError, match="hf_home must be the same on all hosts"):
            open_run()
    else:
        assert open_run().hosts["gpu-2"].settings.hf_home == "/x"


def test_settings_that_are_a_hosts_own_may_differ(opened):
    opened(hosts={"gpu-2": {"gpus": 2}})
    assert open_run().hosts["gpu-2"].settings.gpus == 2


def test_what_is_wrong_is_one_line_with_a_command_to_paste(opened):
    opened(hosts={"gpu-2": {"soak": "x"}})
    with pytest.raises(PyinfraError, match=r"^inventories/prod\.py: gpu-2: soak is not right; .*docs/settings\.md$"):
        open_run()

    def no(run):
        raise Refused("lock", "does not exist", next="tasks/lock.py")

    opened()
    with pytest.raises(
        PyinfraError, match=r"^lock: does not exist\. Next: pyinfra -y inventories/prod\.py tasks/lock\.py$"
    ):
        open_run(no)
    assert as_pyinfra_error(lambda a, b: a + b, 1, 2) == 3


def test_a_run_that_is_refused_leaves_no_recorder_behind(opened):
    state = opened(hosts={"gpu-2": {"soak": "x"}})
    with pytest.raises(PyinfraError):
        open_run()
    assert opening.recorder_of(state) is None
    state = opened()
    open_run(columns=STATUS)
    assert opening.recorder_of(state).columns is STATUS


# --------------------------------------------------------------------------------------------------------- unreachable


def test_a_fleet_that_cannot_be_reached_at_all_gets_its_table(opened, desk, capsys):
    handler = Unreached()
    logger.addHandler(handler)
    try:
        logger.error("    [gpu-1] Could not connect (no route)")
        opened(limit=["gpu-1"])
        recorder = report_unreachable()
    finally:
        logger.removeHandler(handler)
    assert recorder.failed == ["gpu-1"] and recorder.columns is DEPLOY
    row = json.loads((desk / FOLDER / "last.json").read_text())["hosts"]["gpu-1"]
    assert row["state"] == "unreachable" and row["why"] == "no ssh connection: Could not connect (no route)"
    assert "0 of 1 hosts ok" in capsys.readouterr().err


def test_that_a_command_began_is_known_to_whoever_ends_the_run(opened):
    handler = Unreached()
    logger.addHandler(handler)
    try:
        opened()
        assert not handler.command_began
        open_run()
        assert handler.command_began
    finally:
        logger.removeHandler(handler)


def test_a_line_about_skipped_hosts_is_no_news(opened, caplog):
    opened()
    open_run()
    logger.propagate = True
    logger.warning("    [gpu-1] Skipped")
    logger.warning("    [gpu-1] Success")
    assert [record.getMessage() for record in caplog.records] == ["    [gpu-1] Success"]


def test_the_command_line_is_what_the_operator_typed(opened):
    opened(words=("-y", "my.py", "tasks/status.py"))
    assert open_run().command_line == CommandLine(("-y", "my.py", "tasks/status.py"))
