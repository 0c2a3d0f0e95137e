"""The rooms of docs/architecture.md: what each file may import, read from its syntax tree. Every file of tasks/ has a room."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STANDARD = set(sys.stdlib_module_names)
# A file's room is the longest prefix of its path. room: (libraries, our own modules or packages) that it may import.
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    # decides about releases, names, paths
    "tasks/shared/": (set(), {"tasks.shared"}),
    # decides about hosts
    "tasks/control/waves.py": (set(), set()),
    "tasks/control/settings.py": ({"pydantic"}, {"tasks.shared"}),
    "tasks/control/compose.py": ({"yaml"}, {"tasks.shared", "tasks.control.settings"}),
    "tasks/control/preflight.py": (set(), {"tasks.shared", "tasks.control.settings"}),
    "tasks/control/drift.py": (
        set(),
        {"tasks.shared", "tasks.control.settings", "tasks.control.compose", "tasks.control.preflight"},
    ),
    # the files in git
    "tasks/control/lockfile.py": (set(), {"tasks.shared", "tasks.control.settings"}),
    # more than one host, and how a host is reached
    "tasks/control/": ({"pyinfra", "gevent", "paramiko"}, {"tasks.shared", "tasks.control"}),
    "tasks/control/operations/": ({"pyinfra", "gevent"}, {"tasks.shared", "tasks.control"}),
    "tasks/control/reporting/recorder.py": ({"pyinfra", "rich"}, {"tasks.control.reporting"}),
    "tasks/control/reporting/table.py": ({"rich"}, {"tasks.control.preflight"}),
    "tasks/control/reporting/page.py": ({"jinja2", "matplotlib"}, {"tasks.control.preflight"}),
    "tasks/control/reporting/progress.py": ({"gevent", "rich"}, {"tasks.control.preflight"}),
    # runs on another machine
    "tasks/remote/inspect.py": (set(), set()),
    "tasks/remote/__main__.py": (set(), {"tasks.remote"}),
    "tasks/remote/common/": (set(), {"tasks.shared", "tasks.remote.common"}),
    "tasks/remote/host/": (set(), {"tasks.shared", "tasks.remote.common", "tasks.remote.host"}),
    "tasks/remote/bastion/": (
        {"huggingface_hub", "tenacity", "packaging"},
        {"tasks.shared", "tasks.remote.common", "tasks.remote.bastion"},
    ),
    "tasks/remote/container/": (
        {"huggingface_hub", "torch", "PIL", "numpy", "colpali_engine", "transformers"},
        # probe: cosines without numpy. fetch: a download of one file
        {
            "tasks.shared",
            "tasks.remote.common",
            "tasks.remote.container",
            "tasks.remote.host.probe",
            "tasks.remote.bastion.fetch",
        },
    ),
    # orders steps
    "tasks/": ({"pyinfra"}, {"tasks.control", "tasks.shared"}),
    "deploy.py": ({"pyinfra"}, {"tasks.control", "tasks.shared"}),
    "config.py": ({"pyinfra"}, {"tasks.control"}),
}
FILES = sorted(
    str(path.relative_to(ROOT)) for path in [*(ROOT / "tasks").rglob("*.py"), ROOT / "deploy.py", ROOT / "config.py"]
)
ELSEWHERE = [name for name in FILES if name.startswith(("tasks/shared/", "tasks/remote/"))]
PURE = [
    *(name for name in FILES if name.startswith("tasks/shared/")),
    "tasks/control/waves.py",
    "tasks/control/settings.py",
    "tasks/control/compose.py",
    "tasks/control/preflight.py",
    "tasks/control/drift.py",
]


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
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"open"}
    assert not imports(ROOT / name) & {"subprocess", "socket", "time", "os", "pathlib"}


def test_values_hold_no_logic():
    for path in [*(ROOT / "group_data").glob("*.py"), *(ROOT / "inventories").glob("*.py")]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            assert isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr), f"{path.name}: line {node.lineno}"


def test_the_rooms_check_sees_a_stranger(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text("import pyinfra\nfrom tasks.control import ssh\nfrom tasks.shared import lock\nimport os\n")
    assert strangers(planted, set(), {"tasks.shared"}) == {"pyinfra", "tasks.control.ssh"}
