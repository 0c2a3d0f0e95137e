"""The pure parts of the programs that run elsewhere."""

from __future__ import annotations

import base64
import json
import struct

import pytest

from tasks.control import tool as calls
from tasks.control.reporting import recorder as report
from tasks.control.reporting import table
from tasks.remote.bastion import push
from tasks.remote.container import colpali, smoke
from tasks.remote.container import custom as plain
from tasks.remote.host import probe


def golden(rows):
    flat = [x for row in rows for x in row]
    return {"shape": [len(rows), len(rows[0])], "f16": base64.b64encode(struct.pack(f"<{len(flat)}e", *flat)).decode()}


def test_goldens_are_read_back_as_they_were():
    rows = [(1.0, 0.5), (-0.25, 0.0), (0.125, 2.0)]
    assert probe.vectors(golden(rows)) == rows


def test_a_smoke_commands_vectors_are_packed_as_goldens_are():
    rows = [[1.0, 0.5], [-0.25, 0.0]]
    assert probe.vectors(plain.pack(rows)) == [tuple(row) for row in rows]


@pytest.mark.parametrize(
    ("a", "b", "expected"), [((1, 0), (2, 0), 1), ((1, 0), (0, 3), 0), ((1, 1), (-1, -1), -1), ((0, 0), (1, 0), 0)]
)
def test_cosine(a, b, expected):
    assert probe.cosine(a, b) == pytest.approx(expected)


def test_the_query_goes_into_every_string_of_the_body():
    body = {"input": ["{query}", 3], "deep": {"q": "x {query}"}}
    assert probe.filled(body, "why") == {"input": ["why", 3], "deep": {"q": "x why"}}


@pytest.mark.parametrize(
    ("ours", "goldens", "expected"),
    [
        ("cpu/float32", ["cpu/float32", "cuda/bfloat16"], ("cpu/float32", colpali.SAME)),
        ("cuda/bfloat16", ["cpu/bfloat16", "cpu/float32"], ("cpu/bfloat16", colpali.BF16_ACROSS)),
        ("cuda/bfloat16", ["cpu/float32"], ("cpu/float32", colpali.BF16_FP32)),
        ("cpu/float32", [], None),
    ],
)
def test_the_nearest_goldens_and_their_floors(ours, goldens, expected):
    assert colpali.choose(ours, dict.fromkeys(goldens)) == expected


def test_floors_are_read():
    assert smoke.floors("cuda/bfloat16=0.999,0.99") == ("cuda/bfloat16", (0.999, 0.99))


def test_rsyncs_progress_and_statistics_are_read():
    assert push.PROGRESS.match(b"    1,234,567  45%   12.3MB/s    0:00:03").group(1) == b"1,234,567"
    assert push.number(push.STATS["moved"].search("Literal data: 12,345 bytes").group(1)) == 12345


def test_the_tool_is_its_content():
    name, data = calls.tool()
    calls.tool.cache_clear()
    assert calls.tool() == (name, data)


def test_the_report_keeps_failures_last_and_gives_the_retry(capsys):
    rows = {"a": {"state": "failed", "why": "because [x]"}, "b": {"state": "active", "why": ""}}
    hosts = {name: {**dict.fromkeys(report.FIELDS), "role": "gpu", **row} for name, row in rows.items()}
    document = {"release": "f" * 64, "hosts": hosts, "seconds": 1.0, "retry": "pyinfra -y x deploy.py"}
    table.show({**document, "plan": [["b"], ["a"]], "dry": True}, ["a"])
    said = capsys.readouterr().err
    assert "wave 1: b\nwave 2: a\n" in said
    assert said.index("│ b") < said.index("│ a") and "a: because [x]" in said
    assert "1 of 2 as asked" in said and "pyinfra -y x deploy.py" in said
    json.dumps(hosts)


def test_no_password_of_the_command_line_is_reported():
    words = ["-y", "--ssh-password", "hunter2", "--ssh-key-password=hunter3", "deploy.py"]
    assert report.told(words) == ["-y", "--ssh-password", "…", "--ssh-key-password=…", "deploy.py"]
    words = [
        "--password",
        "hunter4",
        "--key-password=hunter5",
        "--data",
        "ssh_password=hunter6",
        "--data=_sudo_password=7",
    ]
    assert not any(char.isdigit() for word in report.told(words) for char in word)
    assert report.told(["--data", "soak=3", "--ssh-password-prompt", "x.py"])[1:] == [
        "soak=3",
        "--ssh-password-prompt",
        "x.py",
    ]
