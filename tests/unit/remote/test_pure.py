"""The pure parts of the programs that run elsewhere."""

from __future__ import annotations

import mmap

import pytest

from tasks.remote.bastion import rsync
from tasks.remote.container import colpali, goldens, options
from tasks.remote.host import probe


def test_the_query_goes_into_every_string_of_the_body():
    body = {"input": ["{query}", 3], "deep": {"q": "x {query}"}}
    assert probe.filled(body, "why") == {"input": ["why", 3], "deep": {"q": "x why"}}


@pytest.mark.parametrize(
    ("ours", "goldens", "expected"),
    [
        ("cpu/float32", ["cpu/float32", "cuda/bfloat16"], ("cpu/float32", colpali.SAME)),
        ("cuda/bfloat16", ["cpu/bfloat16", "cpu/float32"], ("cpu/bfloat16", colpali.OTHER_DEVICE)),
        ("cuda/bfloat16", ["cpu/float32"], ("cpu/float32", colpali.OTHER_DTYPE)),
        ("cpu/float32", [], None),
    ],
)
def test_the_nearest_goldens_and_their_floors(ours, goldens, expected):
    assert colpali.choose(ours, goldens) == expected


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty release, and a directory outside it: (release, directory)."""
    monkeypatch.setattr(colpali, "CACHES", (str(tmp_path / "cache"),))
    for name in ("release", "else where"):
        (tmp_path / name).mkdir()
    return tmp_path / "release", tmp_path / "else where"


def mapped(path):
    path.write_bytes(b"weights")
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def test_weights_from_elsewhere_are_foreign_as_long_as_they_are_mapped(elsewhere):
    release, outside = elsewhere
    path = outside / "model.safetensors"
    with mapped(path), mapped(release / "model.safetensors"), mapped(outside / "libtorch.so"):
        assert colpali.foreign_files(str(release)) == {str(path)}
    assert colpali.foreign_files(str(release)) == set()


def test_another_cache_that_is_not_empty_is_foreign(elsewhere, tmp_path):
    release, _ = elsewhere
    cache = tmp_path / "cache"
    cache.mkdir()
    assert colpali.foreign_files(str(release)) == set()
    (cache / "models--other").mkdir()
    assert colpali.foreign_files(str(release)) == {f"{cache} (another cache in the image)"}


def test_weights_from_elsewhere_are_known_after_their_model_is_gone(elsewhere, monkeypatch):
    release, outside = elsewhere
    monkeypatch.setattr(colpali, "embed", lambda model, *_: model.closed)
    bench = colpali.Bench(lock=None, device="cpu", images=[], options={}, root=str(release))
    with mapped(outside / "adapter.safetensors") as model:
        assert bench.embed(model, None) is False
    with mapped(release / "model.safetensors") as model:
        bench.embed(model, None)
    assert bench.foreign == {str(outside / "adapter.safetensors")}


@pytest.mark.parametrize(
    ("shapes", "faults"),
    [
        ({"page0": (3, 128), "query0": (9, 128)}, []),
        ({"page0": (3, 320), "query0": (9, 320)}, []),
        ({"page0": (1, 4096)}, []),
        ({"page0": (3, 320), "page1": (3, 320), "query0": (9, 128)}, ["query0 (9, 128)"]),
        ({"page0": (3, 128), "query0": (128,)}, ["query0 (128,)"]),
        ({"page0": (3, 128), "query0": (0, 128)}, ["query0 (0, 128)"]),
        ({"page0": (3, 128), "query0": (3, 0)}, ["query0 (3, 0)"]),
        ({"page0": (2, 5, 7)}, ["page0 (2, 5, 7)"]),
    ],
)
def test_vectors_of_any_one_width_are_right_and_of_two_are_not(shapes, faults):
    assert goldens.width_faults(shapes) == faults


def test_floors_are_read():
    assert options.floors("cuda/bfloat16=0.999,0.99") == ("cuda/bfloat16", options.Floors(0.999, 0.99))


def test_rsyncs_progress_and_statistics_are_read():
    assert rsync.PROGRESS.match(b"    1,234,567  45%   12.3MB/s    0:00:03").group(1) == b"1,234,567"
    assert rsync.number(rsync.STATISTICS["moved"].search("Literal data: 12,345 bytes").group(1)) == 12345
