"""The manual says what the code has: generated parts, links, anchors, commands, settings; and it is short and plain."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tasks.control import commands, manual
from tasks.control.rules.states import State
from tasks.control.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
# pyinfra's own flags and data, and names that a page makes up as an example.
NOT_SETTINGS = {"_sudo", "ssh_user", "ssh_port", "ssh_hostname", "ssh_config_file", "ssh_known_hosts_file"}
# Files that an operator writes.
OPERATORS = ("group_data/locks/", "inventories/known_hosts", "inventories/far.py", "group_data/far.py")
# The changelog names what no longer is.
OF_TODAY = [page for page in PAGES if page.name != "CHANGELOG.md"]


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-") for heading in headings}


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.parametrize("page", manual.PARTS)
def test_generated_parts_are_the_codes(page):
    assert (ROOT / page).read_text(encoding="utf-8") == manual.pages()[page], "run: python3 -m tasks.control.manual"


def test_a_generated_part_that_differs_is_seen():
    text = "a\n<!-- x: begin (made) -->\nold\n<!-- x: end -->\nb\n"
    assert manual.filled(text, "x", "new") == text.replace("old", "new") != text
    with pytest.raises(ValueError, match="0 places"):
        manual.filled("no place", "x", "new")


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_and_anchors_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


def test_a_broken_anchor_is_seen():
    assert "the-lab" in anchors(ROOT / "docs/testing.md") and "no-such-heading" not in anchors(ROOT / "docs/testing.md")


@pytest.mark.parametrize("page", OF_TODAY, ids=ids)
def test_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"\b(tasks/[a-z_]+\.py)\b", text)) - {"tasks/x.py"}
    assert named <= set(commands.commands())
    for module in re.findall(r"python3? -m (tasks[\w.]*|tests\.[\w.]+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


@pytest.mark.parametrize("page", OF_TODAY, ids=ids)
def test_files_exist(page):
    """What stands in backticks and looks like a path of this repository is one, or a file that the operator writes."""
    text = prose(page)
    for name in re.findall(r"`((?:tasks|tests|inventories|docs|group_data)/[\w./-]+)`", text):
        assert "NAME" in name or name.startswith(OPERATORS) or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", OF_TODAY, ids=ids)
def test_data_on_a_command_line_is_a_setting(page):
    for key in re.findall(r"--data '?([a-z_]+)=", page.read_text(encoding="utf-8")):
        assert key in Settings.model_fields or key in NOT_SETTINGS, key


def test_every_setting_stands_in_the_manual():
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert [name for name in Settings.model_fields if f"| `{name}` |" not in page] == []


def test_every_bad_state_has_a_heading_of_its_own():
    headings = anchors(ROOT / "docs/troubleshooting.md")
    assert [state.label for state in State if not state.good and state.label.replace(" ", "-") not in headings] == []


def test_the_readme_is_one_page_and_has_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "```\npython3 -m tests.lab demo\npython3 -m tests\n```" in text


def sentence_lengths(text: str) -> list[int]:
    """Words of each sentence of running text: no headings, tables, lists' marks, code or links' targets."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text)
    sentences = []
    for block in blocks:
        if block.lstrip().startswith(("#", "|")):
            continue
        sentences += re.split(r"(?<=[.!?:])\s+", " ".join(block.split()))
    return [count for each in sentences if (count := len(each.split())) > 1]


def test_sentences_are_short():
    """A mean of 16 words at most, and one in ten over 26: the reader is at work at night, in a second language."""
    lengths = sorted(length for page in PAGES for length in sentence_lengths(prose(page)))
    assert len(lengths) > 300
    assert sum(lengths) / len(lengths) <= 16
    assert lengths[len(lengths) * 9 // 10] <= 26


def test_a_long_sentence_is_seen():
    assert sentence_lengths("One two three. " + "word " * 40 + "end.") == [3, 41]
