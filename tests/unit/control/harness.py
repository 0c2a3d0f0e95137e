"""Operations without a network, an engine or pyinfra's own loop: hosts that answer by program and verb, and record what they heard.

Nothing of the code under test is replaced. A FakeHost stands where pyinfra's host object stands, and everything that an
operation does to a host goes through it: its shell, its files, its ssh client for the lease, its new connections.
"""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from pyinfra.api.exceptions import ConnectError
from pyinfra.connectors.util import CommandOutput, OutputLine
from pyinfra.context import ctx_host, ctx_state

from tasks.control.command_line import CommandLine
from tasks.control.host_run import HostRun, Role
from tasks.control.rules.waves import waves
from tasks.control.run import Run
from tasks.control.settings import Settings
from tasks.control.tool import Tool
from tasks.control.transports.protocol import Sent
from tasks.shared.facts import HostFacts
from tasks.shared.lock import Lock
from tests.unit.control.facts import NOW, fit_facts

CALLED = re.compile(r".*/tool/tool-[0-9a-f]{12}\.pyz")
SAME_TOOL = Tool()  # packed once
DEPLOY = ("-y", "inventories/prod.py", "deploy.py")
Answer = Mapping[str, Any] | Callable[["Call"], Any]


@dataclass(frozen=True)
class Call:
    """One call of a program of the tool on a host. verb: "" where it has none. document: its standard input, read as JSON."""

    host: str
    program: str
    verb: str
    options: Mapping[str, Any]
    document: Any
    python: str
    timeout: int


def read_options(words: Sequence[str]) -> dict[str, Any]:
    """`--a b --flag` as {"a": "b", "flag": True}; an option that comes again is a list."""
    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        name = rest.pop(0)
        assert name.startswith("--"), f"{name} is no option"
        value: Any = rest.pop(0) if rest and not rest[0].startswith("--") else True
        key = name[2:]
        found[key] = (
            value if key not in found else [*([found[key]] if isinstance(found[key], str) else found[key]), value]
        )
    return found


class FakeClient:
    """As much of paramiko's client as a lease and a revival ask for."""

    def __init__(self, target: FakeHost):
        self.target, self.closed = target, False

    def get_transport(self) -> Any:
        return SimpleNamespace(is_active=lambda: True, set_keepalive=lambda seconds: None, sock=None)

    def close(self) -> None:
        self.closed = True

    def exec_command(self, words: str) -> tuple[Any, Any, Any]:
        said = self.target.lease_says(words)
        out = io.StringIO(said)
        channel = self.target.lease_channel
        out.channel = channel  # type: ignore[attr-defined]
        return io.StringIO(), out, io.BytesIO(b"complaint")


class FakeConnector:
    """Made anew for each new connection, as pyinfra makes its own."""

    def __init__(self, state: Any, target: FakeHost):
        self.target = target
        self.client = FakeClient(target)

    def connect(self) -> None:
        self.target.connections += 1
        if self.target.connections <= self.target.refuses_first or self.target.connections > self.target.takes_at_most:
            raise ConnectError("no route to host")

    def put_file(self, data: Any, path: str, **elevation: Any) -> bool:
        if self.target.disk_full:
            raise OSError("No space left on device")
        self.target.files[path] = data.read()
        return True


class FakeHost:
    """A host that answers programs by `answers`, {(program, verb): answer}, and keeps what it heard.

    An answer is a dict; a function of the Call; a list, which is taken one by one, its last one for good; or None, for a
    connection that breaks. A program without an answer fails the test. `shell` answers other commands: {a word: success}.
    """

    def __init__(self, name: str, answers: Mapping[tuple[str, str], Any] | None = None, **data: Any):
        self.name, self.data = name, data
        self.answers: dict[tuple[str, str], Any] = dict(answers or {})
        self.connector = FakeConnector(None, self)
        self.connected = True
        self.groups: list[str] = []
        self.connector_data: dict[str, Any] = {}
        self.calls: list[Call] = []
        self.shell_words: list[str] = []
        self.shell: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.said: list[str] = []
        self.noops: list[str] = []
        self.connections, self.refuses_first, self.takes_at_most = 0, 0, 99
        self.disk_full = False
        self.lease_channel = SimpleNamespace(
            settimeout=lambda seconds: None, exit_status_ready=lambda: False, closed=False
        )
        self.facts: dict[str, Any] | None = None
        self.inspections: list[dict[str, Any]] = []

    # what operations call on pyinfra's host

    def noop(self, description: str) -> None:
        self.noops.append(description)

    def log_styled(self, words: str, **more: Any) -> None:
        self.said.append(words)

    def get_fact(self, fact: Any, question: str) -> Any:
        self.inspections.append(json.loads(question))
        return self.facts

    def run_shell_command(self, command: Any, **more: Any) -> tuple[bool, CommandOutput]:
        words = command.get_raw_value()
        at = [number for number, word in enumerate(shlex.split(words)) if CALLED.fullmatch(word)]
        if not at or "bytecode" in shlex.split(words):
            self.shell_words.append(words)
            return not any(word in words and not good for word, good in self.shell.items()), CommandOutput([])
        split = shlex.split(words)
        rest = split[at[0] + 1 :]
        program, verb = rest[0], rest[1] if len(rest) > 1 and not rest[1].startswith("--") else ""
        stdin = more["_stdin"]
        call = Call(
            self.name,
            program,
            verb,
            read_options(rest[1 + bool(verb) :]),
            _document(stdin),
            split[at[0] - 1],
            more["_timeout"],
        )
        self.calls.append(call)
        answer = self.answer(call)
        if answer is None:
            return False, CommandOutput([OutputLine("stderr", "connection lost")])
        lines = [OutputLine("stdout", "welcome"), OutputLine("stdout", json.dumps(answer))]
        return bool(answer.get("ok")), CommandOutput(lines)

    # what the tests ask

    def answer(self, call: Call) -> Any:
        key = (call.program, call.verb)
        assert key in self.answers, f"{self.name} was not expected to hear `{call.program} {call.verb}`"
        answer = self.answers[key]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        return answer(call) if callable(answer) else answer

    def heard(self) -> list[str]:
        """What it was asked, in order: "store admit"."""
        return [f"{call.program} {call.verb}".strip() for call in self.calls]

    def call(self, program: str, verb: str = "") -> Call:
        """The one call of this program that it heard."""
        (found,) = [call for call in self.calls if (call.program, call.verb) == (program, verb)]
        return found

    def lease_says(self, words: str) -> str:
        split = shlex.split(words)
        if split[:2] == ["sh", "-c"]:
            split = shlex.split(split[2])
        call = Call(self.name, split[2], split[3], read_options(split[4:]), None, split[0], 0)
        self.calls.append(call)
        answer = self.answer(call)
        return answer if isinstance(answer, str) else "welcome\n" + json.dumps(answer) + "\n"


def _document(stdin: str) -> Any:
    try:
        return json.loads(stdin) if stdin else None
    except ValueError:
        return stdin


class FakeTransport:
    """A transport that moves nothing: it says what `sent` says, or that all went over the wire."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.sent: Sent | None = None

    def prepare(self, run: Run, me: HostRun) -> None:
        self.steps.append(f"prepare {me.name}")

    def finish_earlier(self, run: Run, me: HostRun) -> None:
        self.steps.append(f"finish {me.name}")

    def send(self, run: Run, me: HostRun, blobs: Mapping[str, int]) -> Sent:
        self.steps.append(f"send {me.name}")
        total = sum(blobs.values())
        return self.sent or Sent(total, 0, total + 10)


@dataclass
class Ran:
    """How an operation went on one host. commands: how many it yielded. good: none of them failed."""

    commands: int
    good: bool


@dataclass
class Lab:
    """One run over made-up hosts, and as much of pyinfra as it needs."""

    run: Run
    state: Any
    failed: set[str] = field(default_factory=set)
    executing: bool = True

    def target(self, name: str) -> FakeHost:
        return self.run.hosts[name].target

    @contextmanager
    def on(self, name: str) -> Iterator[FakeHost]:
        """As pyinfra loads a command for one host: its `host` is this one."""
        with used(ctx_state, self.state), used(ctx_host, self.target(name)):
            yield self.target(name)

    def perform(self, name: str, operation: Any, **arguments: Any) -> Ran:
        """An operation on one host, as pyinfra runs it: command by command, until one fails. A dry run makes no command run."""
        with self.on(name) as target:
            count, good = 0, True
            for command in operation._inner(run=self.run, **arguments):
                count += 1
                if self.executing and not command.execute(self.state, target, {}):
                    self.failed.add(name)
                    good = False
                    break
            return Ran(count, good)

    def rehearse(self, name: str, operation: Any, **arguments: Any) -> Ran:
        """The same with --dry."""
        self.executing = False
        try:
            return self.perform(name, operation, **arguments)
        finally:
            self.executing = True


@contextmanager
def used(context: Any, module: Any) -> Iterator[None]:
    """pyinfra's own `use`, which forgets to put the old one back after an exception."""
    before = context.get()
    context.set(module)
    try:
        yield
    finally:
        context.set(before)


def make_lab(
    settings: Settings,
    lock: Lock | None = None,
    gpus: Sequence[str] = ("gpu1",),
    words: Sequence[str] = DEPLOY,
    facts: HostFacts | None = None,
) -> Lab:
    """A run for a bastion and these GPU hosts, all inspected: fit, or with these facts."""
    command_line = CommandLine(tuple(words))
    hosts = {}
    for name in ("bastion", *gpus):
        role = Role.BASTION if name == "bastion" else Role.GPU
        me = HostRun(name, role, FakeHost(name), settings, command_line)
        me.inspected = me.asked = True
        me.facts = facts if facts is not None and role is Role.GPU else fit_facts()
        me.python = me.facts.python
        hosts[name] = me
    run = Run(
        command_line=command_line,
        bastion=hosts["bastion"],
        hosts=hosts,
        fleet=list(gpus),
        transport=FakeTransport(),
        clock=lambda: NOW,
        tool=SAME_TOOL,
        lock=lock,
        reported=["bastion", *gpus],
    )
    targets = [me.target for me in hosts.values()]
    state = SimpleNamespace(
        print_output=False,
        print_input=False,
        is_executing=True,
        failed_hosts=set(),
        activated_hosts=list(targets),
        callback_handlers=[],
    )
    lab = Lab(run, state)
    run.failed_in_pyinfra = lambda: set(lab.failed)
    run.is_executing = lambda: lab.executing
    run.waves = waves(list(gpus), settings.waves)
    for me in hosts.values():
        me.tools = [run.tool.name]
    return lab
