"""The inspection as text: one Python program that a host can run which has nothing of ours.

A host's modules keep the names that they have here, because the program carries their sources and imports them from memory.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = "tasks.remote.inspect.program"
# The line that ends the text in a shell's here-document.
DELIMITER = "HF_OFFLINE_INSPECTION"

# All of the text must parse on Python 2.7 and 3.4, so that an old Python answers with its version and not with a SyntaxError.
HEAD = """\
import json
import sys

if sys.version_info < (3, 9):
    print("\\n" + json.dumps({"python": list(sys.version_info[:3])}))
    sys.exit(0)
sys.dont_write_bytecode = True

SOURCES = {
"""
TAIL = """\
}

from importlib.abc import InspectLoader
from importlib.util import spec_from_loader


class Carried(InspectLoader):
    def find_spec(self, name, path=None, target=None):
        return spec_from_loader(name, self) if name in SOURCES else None

    def is_package(self, name):
        return any(other.startswith(name + ".") for other in SOURCES)

    def get_source(self, name):
        return SOURCES[name]

    def get_code(self, name):
        return compile(SOURCES[name], name, "exec")


sys.meta_path.insert(0, Carried())
"""


@cache
def text() -> str:
    """The program, in ASCII. `python3 -I - QUESTION` runs it; QUESTION is facts.Question as JSON.

    It prints facts.HostFacts as one line of JSON. A Python older than 3.9 prints {"python": [major, minor, micro]} alone.
    """
    sources = "".join(f"{name!a}: {path.read_text(encoding='utf-8')!a},\n" for name, path in modules(PROGRAM).items())
    return f"{HEAD}{sources}{TAIL}\nfrom {PROGRAM} import main\n\nmain(sys.argv[1:])\n"


def modules(program: str) -> dict[str, Path]:
    """{name: file} of a module of ours, of every module of ours that it needs, and of the packages that they lie in; sorted."""
    found: dict[str, Path] = {}
    waiting = [program]
    while waiting:
        name = waiting.pop()
        path = source_of(name)
        if path is None or name in found:
            continue
        found[name] = path
        waiting += [name.rpartition(".")[0], *imported(path)]
    return dict(sorted(found.items()))


def source_of(name: str) -> Path | None:
    """The file of a module or package of ours, or None where `name` is none."""
    path = ROOT / name.replace(".", "/")
    files = [path / "__init__.py", path.with_suffix(".py")]
    return next((file for file in files if name.startswith("tasks") and file.is_file()), None)


def imported(path: Path) -> list[str]:
    """Every name that a file imports. Of `from a import b` that is both a and a.b, since b may be a module."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found
