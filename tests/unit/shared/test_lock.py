"""The lock: same inputs same id, everything else refused by name."""

from __future__ import annotations

import json
import random

import pytest

from tasks.shared import layout
from tasks.shared.blobs import missing_blobs, split_blob
from tasks.shared.errors import Refused, describe
from tasks.shared.lock import DELIVERIES, lock_text, parse_lock, release_id
from tasks.shared.names import base_of, check_config, check_path, check_paths, is_included
from tasks.shared.spaces import embedding_space


def test_the_same_inputs_give_the_same_bytes_and_id(document):
    shuffled = json.loads(json.dumps(document))
    shuffled["models"][0]["files"] = dict(reversed(list(document["models"][0]["files"].items())))
    assert lock_text(shuffled) == lock_text(document)
    assert release_id(shuffled) == release_id(document)


def test_what_was_asked_for_is_a_note_and_changes_no_id(document):
    before = release_id(document)
    document["asked"] = {"docai/colpali-tiny": "v2"}
    assert release_id(document) == before


@pytest.mark.parametrize("change", ["commit", "file", "image", "serve"])
def test_every_input_changes_the_id(document, change):
    before = release_id(document)
    if change == "commit":
        document["models"][0]["commit"] = "c" * 40
    elif change == "file":
        document["models"][1]["files"]["config.json"]["size"] += 1
    elif change == "image":
        document["image"]["config"]["size"] += 1
    else:
        document["serve"]["dtype"] = "float32"
    assert release_id(document) != before


UNSAFE = [
    "",
    "/etc/passwd",
    "../x.json",
    "a/../../x.json",
    "a//b.json",
    "./a.json",
    "-rf.json",
    "a/-b.json",
    "a\nb.json",
    "a\x1b[2J.json",
    "a\\b.json",
    "x" * 256,
    "e\u0301.json",
    "a\ud800.json",
]


@pytest.mark.parametrize("name", UNSAFE, ids=ascii)
def test_unsafe_names_are_refused_and_printed_escaped(name):
    with pytest.raises(Refused) as no:
        check_path(name)
    assert str(no.value).isascii() or "…" in str(no.value)
    assert "\x1b" not in str(no.value) and "\n" not in str(no.value)


@pytest.mark.parametrize("name", ["config.json", "a/b/c.json", "model-00001-of-00002.safetensors", "é.json"])
def test_safe_names_pass(name):
    assert check_path(name) == name


def test_names_that_clash_are_refused():
    with pytest.raises(Refused, match="clashes"):
        check_paths(["Config.json", "config.json"])
    with pytest.raises(Refused, match="also a file"):
        check_paths(["a", "a/b.json"])


@pytest.mark.parametrize(
    "path",
    ["pytorch_model.bin", "x.pt", "modeling.py", "a.pkl", "checkpoint-10/a.safetensors", ".gitattributes", "README.md"],
)
def test_code_pickles_and_leftovers_are_not_taken(path):
    assert not is_included(path)


@pytest.mark.parametrize(
    "path", ["model.safetensors", "config.json", "chat_template.jinja", "merges.txt", "vocab.json", "tokenizer.model"]
)
def test_what_a_model_needs_is_taken(path):
    assert is_included(path)


def test_a_config_with_auto_map_is_refused():
    with pytest.raises(Refused, match="auto_map"):
        check_config("x: config.json", {"auto_map": {"AutoModel": "m.M"}})
    check_config("x: config.json", {"model_type": "colpali"})


@pytest.mark.parametrize("base", ["./models/base", "/srv/base", "base", None, 3])
def test_a_base_that_is_no_repository_is_refused(base):
    with pytest.raises(Refused, match="names no Hub repository"):
        base_of("x", {"base_model_name_or_path": base})


def broken(document, path, value):
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["format"], 2, "format 1"),
        (["extra"], 1, "no other keys"),
        (["models", 0, "commit"], "main", "40-hex commit"),
        (["models", 0, "repo"], "../x", "owner/name"),
        (["models", 0, "role"], "boss", "one of"),
        (["models", 0, "base"], "docai/else", "base is not in the lock"),
        (
            ["models", 0, "files", "config.json"],
            {"size": 1, "sha256": "0" * 64, "etag": "0" * 64},
            "present and absent",
        ),
        (
            ["models", 0, "files", "x.py"],
            {"size": 1, "sha256": "0" * 64, "etag": "0" * 64},
            "a file that a release takes",
        ),
        (["models", 0, "files", "../x.json"], {"size": 1, "sha256": "0" * 64, "etag": "0" * 64}, "no safe file name"),
        (["models", 1, "files", "config.json", "size"], -1, "a size in bytes"),
        (["models", 1, "files", "config.json", "size"], True, "a size in bytes"),
        (["models", 1, "files", "config.json", "size"], 2**53 + 1, "a size in bytes"),
        (["image", "layers", 0, "size"], 2**53 + 1, "a size in bytes"),
        (["models", 1, "files", "config.json", "sha256"], "abc", "a sha256"),
        (["models", 1, "files", "config.json", "etag"], "abc", "an etag"),
        (["image", "name"], "Docai:1", "an image name"),
        (["image", "config", "digest"], "sha256:zz", "sha256:…"),
        (["serve", "model"], "docai/else", "one of"),
        (["models"], [], "each model once"),
        (["image"], None, "is not a lock"),
    ],
)
def test_a_lock_that_is_wrong_is_refused_by_name(document, path, value, says):
    with pytest.raises(Refused, match=says):
        parse_lock(broken(document, path, value), "x.json")


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '"x"', "3", "{}", '{"format": 1}'])
def test_nonsense_is_no_lock_and_no_traceback(text):
    with pytest.raises(Refused):
        parse_lock(text, "x.json")


def test_a_thousand_random_damages_never_raise_anything_but_a_refusal(document):
    text, rng, refused = lock_text(document), random.Random(0), 0
    for _ in range(1000):
        at = rng.randrange(len(text))
        try:
            parse_lock(text[:at] + rng.choice('{}[]",:0aZ\\') + text[at + 1 :], "x.json")
        except Refused:
            refused += 1
    assert refused > 500


def test_missing_is_by_digest_and_size():
    wanted = {"a": 1, "b": 2, "c": 3}
    assert missing_blobs(wanted, {"a": 1, "b": 1, "d": 9}) == {"b": 2, "c": 3}


def test_the_tree_is_a_cache_that_resolves(lock, tmp_path):
    tree = layout.tree(lock)
    for link, target in tree.links.items():
        found = (tmp_path / link).parent.joinpath(target).resolve().relative_to(tmp_path.resolve())
        assert str(found) in tree.blobs, link


def test_refs_have_no_newline_and_absent_names_have_markers(lock):
    texts = layout.tree(lock).texts
    assert texts["hub/models--docai--colpali-tiny/refs/main"] == "a" * 40
    assert texts[f"hub/models--docai--colpali-tiny/.no_exist/{'a' * 40}/config.json"] == ""


def test_the_image_tag_is_unique_to_its_digest(lock):
    assert lock.image.tag == f"docai/backend:1.0-{lock.image.manifest.sha256[:12]}"


def changed(document, **more):
    copy = json.loads(json.dumps(document))
    for path, value in more.items():
        place = copy
        *way, last = path.split("__")
        for step in way:
            place = place[int(step) if step.isdigit() else step]
        place[last] = value
    return embedding_space(parse_lock(json.dumps(copy)))


def test_the_embedding_space_is_what_decides_a_vector(document):
    same = embedding_space(parse_lock(json.dumps(document)))
    assert changed(document, models__0__commit="c" * 40) == same
    assert changed(document, image__name="docai/backend:2.0") == same
    assert changed(document, serve__attention="eager") == same
    assert changed(document, serve__dtype="float32") != same
    assert changed(document, serve__image_processor="pil") not in (
        same,
        changed(document, serve__image_processor="torchvision"),
    )
    other = {
        **document["models"][0]["files"],
        "adapter_model.safetensors": {"size": 3, "sha256": "d" * 64, "etag": "d" * 64},
    }
    assert changed(document, models__0__files=other) != same
    beside = {
        **document["models"][0]["files"],
        "generation_config.json": {"size": 3, "sha256": "e" * 64, "etag": "e" * 64},
    }
    assert changed(document, models__0__files=beside) == same


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("docai/backend:1", "docker.io/docai/backend:1"),
        ("backend:1", "docker.io/library/backend:1"),
        ("reg.example/docai/backend:1", "reg.example/docai/backend:1"),
        ("localhost/backend:1", "localhost/backend:1"),
        ("reg:5000/backend:1", "reg:5000/backend:1"),
    ],
)
def test_full_image_names(name, full):
    assert layout.full_name(name) == full


def test_nothing_in_a_message_steers_a_terminal():
    assert "\x1b" not in describe({"where": "x", "what": "\x1b[2J", "found": "\x07a"})


# ------------------------------------------------------------------------------------------------- ways of delivery


def delivered(document, delivery, **more):
    document["serve"] |= {"delivery": delivery, **more}
    return parse_lock(lock_text(document))


def test_each_way_is_a_release_of_its_own_in_the_same_space(document, lock):
    baked = delivered(document, "bake", hf_home="/models/hf")
    assert baked.id != lock.id and embedding_space(baked) == embedding_space(lock)
    assert lock.delivery == "mount" and lock.tag == lock.image.tag != baked.tag


def test_online_the_store_brings_the_image_alone(document, lock):
    online = delivered(document, "online")
    assert online.blobs() == online.image_blobs() and online.model_files() != {}
    assert set(layout.tree(online).texts) >= {"lock.json"} and not layout.tree(online).links
    assert layout.cache_tree(online).links == layout.cache_tree(lock).links != {}


@pytest.mark.parametrize(
    "serve", [{"delivery": "stick"}, {"delivery": "bake"}, {"delivery": "bake", "hf_home": "a/../b"}]
)
def test_a_delivery_that_is_none_is_refused(document, serve):
    document["serve"] |= serve
    with pytest.raises(Refused):
        parse_lock(lock_text(document))


HOME = "/models/hf"


def test_what_is_mounted_tells_the_ways_apart(document, lock):
    root = f"/srv/models/releases/{lock.id}"
    assert lock.is_mounted("/srv/models", {HOME: root, "/models": "/home/old"}, HOME)
    assert not lock.is_mounted("/srv/models", {}, HOME)
    online = delivered(document, "online")
    volume = f"/var/lib/docker/volumes/{online.volume}/_data"
    assert online.is_mounted("/srv/models", {HOME: volume}, HOME)
    assert not online.is_mounted("/srv/models", {HOME: "/var/lib/docker/volumes/other/_data"}, HOME)
    baked = delivered(document, "bake", hf_home=HOME)
    assert baked.is_mounted("/srv/models", {"/data": "/x", "/models/hf2": "/y"}, HOME)


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("where", [HOME, "/models", f"{HOME}/hub"])
def test_another_cache_over_the_releases_own_is_seen(document, delivery, where):
    lock = delivered(document, delivery, **({"hf_home": HOME} if delivery == "bake" else {}))
    mounts = {HOME: f"/srv/models/releases/{lock.id}"} if delivery == "mount" else {}
    mounts |= {HOME: f"/volumes/{lock.volume}/_data"} if delivery == "online" else {}
    good = where == "/models" and delivery != "bake"  # the release's own mount lies over it
    assert lock.is_mounted("/srv/models", {**mounts, where: "/home/old"}, HOME) is good


def test_a_blob_is_split_into_parts_that_are_all_of_it():
    assert split_blob("ab", 10, 10) == [("ab", 0, 10)] and split_blob("ab", 0, 10) == [("ab", 0, 0)]
    assert split_blob("ab", 25, 10) == [("ab.000", 0, 10), ("ab.001", 10, 10), ("ab.002", 20, 5)]
    assert len({name for name, _, _ in split_blob("ab", 2000, 1)}) == 2000
