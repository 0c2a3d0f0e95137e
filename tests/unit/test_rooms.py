"""The rooms of docs/architecture.md: what each file may import, read from its syntax tree. Every file of tasks/ has a room."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STANDARD = set(sys.stdlib_module_names)
C = "tasks.control."
SHARED = "tasks.shared"
RULES, GIT, SETTINGS = C + "rules", C + "git", C + "settings"
# What an operation and a transport may know: a run, its hosts, the rules about them, and how a host is called.
CALLERS = {SHARED, RULES, GIT, SETTINGS, C + "run", C + "host_run", C + "tool", C + "summaries", C + "who"}
# A file's room is the longest prefix of its path. room: (libraries, our own modules or packages) that its files may import.
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    # decides about releases, names, paths
    "tasks/shared/": (set(), {SHARED}),
    # decides about hosts
    "tasks/control/rules/": (set(), {SHARED, RULES, SETTINGS}),
    "tasks/control/rules/compose.py": ({"yaml"}, {SHARED, SETTINGS}),
    "tasks/control/summaries.py": (set(), {SHARED, RULES, C + "host_run"}),
    "tasks/control/host_run.py": (set(), {SHARED, RULES, SETTINGS, C + "command_line"}),
    # reads the command line, the settings, the files in git
    "tasks/control/command_line.py": (set(), set()),
    "tasks/control/settings.py": ({"pydantic"}, {SHARED}),
    "tasks/control/settings_layers.py": ({"pydantic"}, {SHARED, SETTINGS, RULES}),
    "tasks/control/git/": (set(), {SHARED, SETTINGS, GIT}),
    "tasks/control/inputs.py": ({"pyinfra"}, {SHARED, GIT, C + "run"}),
    "tasks/control/inspection.py": (set(), set()),
    "tasks/control/who.py": (set(), set()),
    "tasks/control/version.py": (set(), {"tasks", C + "tool"}),
    # is about a run and its hosts
    "tasks/control/run.py": (
        set(),
        {SHARED, RULES, GIT, SETTINGS, *(C + name for name in ("command_line", "host_run", "leases", "ssh", "tool"))}
        | {C + "transports.protocol"},
    ),
    "tasks/control/ssh.py": ({"gevent", "paramiko", "pyinfra"}, {SHARED, C + "settings_layers"}),
    "tasks/control/leases.py": ({"gevent", "paramiko", "pyinfra"}, {SHARED, C + "ssh"}),
    "tasks/control/gates.py": ({"pyinfra"}, {RULES, C + "command_line", C + "host_run", C + "run"}),
    "tasks/control/assess.py": (
        {"pydantic", "pyinfra"},
        CALLERS | {C + "operations.inspection_fact"},
    ),
    "tasks/control/opening.py": (
        {"gevent", "pyinfra"},
        {SHARED, RULES, SETTINGS, *(C + name for name in ("command_line", "host_run", "run", "settings_layers", "ssh"))}
        | {C + "transports", C + "reporting"},
    ),
    # builds commands
    "tasks/control/tool.py": ({"gevent", "pyinfra"}, {SHARED, RULES, C + "host_run", C + "run", C + "ssh"}),
    "tasks/control/transports/": ({"gevent"}, CALLERS | {C + "transports", C + "reporting.progress"}),
    "tasks/control/operations/": (
        {"pyinfra"},
        CALLERS
        | {C + "operations", *(C + name for name in ("settings_layers", "transports", "version", "inspection"))}
        # where reports lie, and how they write a time
        | {C + "reporting.recorder", C + "reporting.clock"},
    ),
    # tells people
    "tasks/control/reporting/": (
        {"rich"},
        {RULES, *(C + name for name in ("command_line", "host_run", "reporting", "run", "version", "who"))},
    ),
    "tasks/control/reporting/page.py": ({"jinja2", "matplotlib"}, {RULES, C + "host_run", C + "reporting"}),
    "tasks/control/reporting/progress.py": ({"gevent", "rich"}, {RULES}),
    "tasks/control/reporting/recorder.py": (
        {"pyinfra", "rich"},
        {RULES, *(C + name for name in ("command_line", "host_run", "reporting", "run", "version", "who"))},
    ),
    "tasks/control/commands.py": ({"rich"}, {C + "tool", C + "version"}),
    "tasks/control/manual.py": (
        set(),
        {RULES, SETTINGS, C + "commands", C + "reporting.document", C + "tool"},
    ),
    "tasks/control/__init__.py": (set(), set()),
    # runs on another machine
    "tasks/remote/inspect/": (set(), {SHARED, "tasks.remote.common", "tasks.remote.inspect"}),
    "tasks/remote/__main__.py": (set(), {"tasks.remote"}),
    "tasks/remote/__init__.py": (set(), set()),
    "tasks/remote/common/": (set(), {SHARED, "tasks.remote.common"}),
    "tasks/remote/common/hub.py": ({"huggingface_hub"}, {"tasks.shared"}),
    "tasks/remote/host/": (set(), {SHARED, "tasks.remote.common", "tasks.remote.host"}),
    "tasks/remote/bastion/": (
        {"huggingface_hub", "tenacity", "packaging"},
        {SHARED, "tasks.remote.common", "tasks.remote.bastion"},
    ),
    "tasks/remote/container/": (
        {"huggingface_hub", "torch", "PIL", "numpy", "colpali_engine", "transformers"},
        {"tasks.shared", "tasks.remote.common", "tasks.remote.container"},
    ),
    # orders steps
    "tasks/": ({"pyinfra"}, {"tasks.control", "tasks.shared"}),
    "deploy.py": ({"pyinfra"}, {"tasks.control"}),
    "config.py": ({"pyinfra"}, {C + "command_line", C + "opening", C + "reporting.recorder"}),
}
FILES = sorted(
    str(path.relative_to(ROOT)) for path in [*(ROOT / "tasks").rglob("*.py"), ROOT / "deploy.py", ROOT / "config.py"]
)
ELSEWHERE = [name for name in FILES if name.startswith(("tasks/shared/", "tasks/remote/"))]
PURE_ROOMS = ("tasks/shared/", "tasks/control/rules/")
PURE_FILES = ("command_line", "settings", "settings_layers", "summaries", "host_run")
PURE = [
    *(name for name in FILES if name.startswith(PURE_ROOMS)),
    *(f"tasks/control/{name}.py" for name in PURE_FILES),
]
# Of a pure file: what it may import of the modules that reach outside. A command line has paths; a phase has a time.
EXCEPT = {"tasks/control/command_line.py": {"os"}, "tasks/control/host_run.py": {"time"}}
OUTSIDE = {
    "subprocess",
    "socket",
    "time",
    "os",
    "pathlib",
    "shutil",
    "tempfile",
    "io",
    "random",
    "secrets",
    "urllib",
    "http",
}


def room(name: str) -> str:
    return max((prefix for prefix in ROOMS if name.startswith(prefix)), key=len)


def imports(path: Path) -> set[str]:
    """Every module that a file imports; of `from tasks.x import name`, tasks.x.name where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                inside = ROOT / full.replace(".", "/")
                found.add(full if inside.is_dir() or inside.with_suffix(".py").is_file() else node.module)
    return found - {"__future__"}


def strangers(path: Path, libraries: set[str], ours: set[str]) -> set[str]:
    """What a file imports beside the standard library, these libraries, and these modules and packages of ours."""
    allowed = STANDARD | libraries
    return {
        name
        for name in imports(path)
        if name.split(".")[0] not in allowed and not any(f"{name}.".startswith(f"{own}.") for own in ours)
    }


@pytest.mark.parametrize("name", FILES)
def test_each_file_imports_what_its_room_may(name):
    assert strangers(ROOT / name, *ROOMS[room(name)]) == set()


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_runs_elsewhere_is_python_3_9(name):
    ast.parse((ROOT / name).read_text(encoding="utf-8"), feature_version=(3, 9))


@pytest.mark.parametrize("name", PURE)
def test_pure_rooms_do_no_io(name):
    assert reaches_outside(ROOT / name) <= EXCEPT.get(name, set())


def reaches_outside(path: Path) -> set[str]:
    """What a file uses of the world outside: modules, and the builtins that read or ask."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return (called & {"open", "input", "exec", "eval"}) | (imports(path) & OUTSIDE)


def test_the_search_for_io_finds_it(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text("import os\nfrom time import sleep\nimport json\nopen('x')\n")
    assert reaches_outside(planted) == {"os", "time", "open"}


def test_every_room_has_files_and_every_file_has_a_room_narrower_than_tasks():
    assert {room(name) for name in FILES} == set(ROOMS)
    commands = {name for name in FILES if room(name) == "tasks/"}
    assert all(name.count("/") == 1 for name in commands), "a file below a folder of tasks/ has that folder's room"


def test_values_hold_no_logic():
    for path in [*(ROOT / "group_data").glob("*.py"), *(ROOT / "inventories").glob("*.py")]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            assert isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr), f"{path.name}: line {node.lineno}"


def test_the_rooms_check_sees_a_stranger(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text("import pyinfra\nfrom tasks.control import ssh\nfrom tasks.shared import lock\nimport os\n")
    assert strangers(planted, set(), {"tasks.shared"}) == {"pyinfra", "tasks.control.ssh"}
