"""The rooms of the design: what each file may import, read from its syntax tree."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STANDARD = set(sys.stdlib_module_names)
LIB = "tasks.lib."
# What an operation may know: everything of ours but the story itself.
OPERATIONS = (
    {"operations"}
    | {path.stem for path in (ROOT / "tasks/lib").glob("*.py")}
    | {f"operations.{path.stem}" for path in (ROOT / "tasks/lib/operations").glob("*.py")}
)
# room -> (libraries, our own modules) that its files may import, beside the standard library
ROOMS = {
    "tasks/lib/release.py": (set(), set()),
    "tasks/lib/waves.py": (set(), set()),
    "tasks/lib/settings.py": ({"pydantic"}, {"release"}),
    "tasks/lib/compose.py": ({"yaml"}, {"release", "settings"}),
    "tasks/lib/fitness.py": (set(), {"release", "settings", "compose"}),
    "tasks/lib/facts.py": ({"pyinfra"}, {"release"}),
    "tasks/lib/locks.py": (set(), {"release", "settings"}),
    "tasks/lib/report.py": ({"pyinfra", "rich"}, {"page", "table"}),
    "tasks/lib/table.py": ({"rich"}, {"fitness"}),
    "tasks/lib/page.py": ({"jinja2", "matplotlib"}, {"fitness"}),
    "tasks/lib/display.py": ({"gevent", "rich"}, {"fitness"}),
    "tasks/lib/calls.py": ({"pyinfra", "gevent"}, {"release", "settings", "fleet", "report"}),
    **{
        f"tasks/lib/operations/{path.name}": ({"pyinfra", "gevent"}, OPERATIONS)
        for path in sorted((ROOT / "tasks/lib/operations").glob("*.py"))
    },
    "tasks/lib/fleet.py": ({"pyinfra", "gevent", "paramiko"}, {"release", "settings", "facts", "report"}),
}
# The remote programs run where nothing of ours is installed: the standard library, release.py and what is shipped with
# it, as of Python 3.9. look.py goes as text before anything is there, so it imports nothing of ours at all.
SHIPPED = {"release"} | {path.stem for path in (ROOT / "tasks/remote").glob("*.py")} - {"look", "__main__"}
REMOTE = {
    "wheels.py": {"packaging"},
    "fetch.py": {"huggingface_hub", "tenacity"},
    "colpali.py": {"huggingface_hub", "torch", "PIL", "numpy"},
    "families.py": {"colpali_engine", "transformers"},
}
PURE = (
    "tasks/lib/release.py",
    "tasks/lib/waves.py",
    "tasks/lib/settings.py",
    "tasks/lib/compose.py",
    "tasks/lib/fitness.py",
    "tasks/lib/standing.py",
)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module in ("tasks.lib", "tasks")
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if inside else {node.module}
    return found - {"__future__"}


def strangers(path: Path, libraries: set[str], ours: set[str]) -> set[str]:
    allowed = STANDARD | libraries
    own = {LIB + name for name in ours} | {LIB.rstrip(".")}
    return {name for name in imports(path) if name.split(".")[0] not in allowed and name not in own}


@pytest.mark.parametrize("name", ROOMS)
def test_each_file_imports_what_its_room_may(name):
    assert strangers(ROOT / name, *ROOMS[name]) == set()


@pytest.mark.parametrize("path", sorted((ROOT / "tasks/remote").glob("*.py")), ids=lambda path: path.name)
def test_remote_programs_need_nothing_but_what_is_shipped_with_them(path):
    ours = set() if path.name == "look.py" else SHIPPED
    assert strangers(path, REMOTE.get(path.name, set()) | ours, set()) == set()


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / "tasks/remote").glob("*.py")), ROOT / "tasks/lib/release.py"], ids=lambda path: path.name
)
def test_what_runs_elsewhere_is_python_3_9(path):
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))


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
    planted.write_text("import pyinfra\nfrom tasks.lib import fleet\nimport os\n")
    assert strangers(planted, set(), set()) == {"pyinfra", "tasks.lib.fleet"}
