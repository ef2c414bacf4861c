import errno
import gzip
import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from records import line, tokens_of

import mtsft
from mtsft.config import DataConfig
from mtsft.data import open_store as stores
from mtsft.data import store, store_key
from mtsft.data.cache_lock import in_cache
from mtsft.data.open_store import open_store
from mtsft.dialogue import readers
from mtsft.encoding.spec import KEYS_OF_OTHERS, EncodingSpec
from mtsft.encoding.stats import EncodingStats
from mtsft.encoding.token_tree import TokenTree
from mtsft.errors import InputError
from mtsft.template.built_in import CHATML
from mtsft.tokenizer import sentencepiece

MARKERS = ("<|im_start|>", "<|im_end|>")


@pytest.fixture
def files(tmp_path):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text("".join(line(n) for n in range(10)))
    second.write_text("\n" + line(10, id="ten é") + "\n" + line(11, id="") + line(12, id=7))
    return [first, second]


@pytest.fixture
def build_calls(monkeypatch):
    """The stores that are built, not found."""
    calls, build = [], stores._build
    monkeypatch.setattr(stores, "_build", lambda *args: (calls.append(args), build(*args)))
    return calls


@pytest.fixture
def small_pieces(monkeypatch):
    """Lets small files be read in many pieces and encoded by several processes."""

    def cut(size):
        monkeypatch.setattr(stores, "_INLINE_BYTES", 0)
        monkeypatch.setattr(stores.readers, "read_chunks", partial(readers.read_chunks, size=size))

    return cut


@pytest.fixture
def small_parts(monkeypatch):
    """A store looks at three trees at a time."""
    monkeypatch.setattr(store, "_TREES_AT_A_TIME", 3)


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# What is kept


def test_trees_ids_and_sources_come_back_as_they_were_encoded(files, spec, open_quietly, encoder):
    store = open_quietly(files, spec)
    assert len(store) == 13
    counted = EncodingStats()
    places = [(files[0], n) for n in range(1, 11)] + [(files[1], n) for n in (2, 4, 5)]
    for i, (path, number) in enumerate(places):
        dialogue = readers.parse(path.read_bytes().split(b"\n")[number - 1], path, number)
        [(_, tree)], stats = encoder.encode([dialogue])
        counted += stats
        for name in TokenTree.__slots__:
            kept = getattr(store[i], name)
            np.testing.assert_array_equal(kept, getattr(tree, name), err_msg=name)
            assert kept.dtype == getattr(tree, name).dtype
        assert store.lengths_N[i] == len(tree)
        assert store.weights_N[i] == tree.response_mask_N.sum()
        assert store.id(i) == dialogue.id
        assert store.source(i) == (path, number)
    assert [store.id(i) for i in (0, 9, 10, 11, 12)] == ["first.jsonl:1", "first.jsonl:10", "ten é", "", "7"]
    assert store.stats == counted


def test_what_is_stored_cannot_be_written_to(files, spec, open_quietly):
    tree = open_quietly(files, spec)[0]
    with pytest.raises(ValueError, match="read-only"):
        tree.tokens_N[0] = 1


def test_files_without_a_response_make_a_store_of_none(tmp_path, spec, open_quietly):
    path = tmp_path / "d.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n' * 3)
    store = open_quietly([path], spec)
    assert len(store) == 0
    assert store.lengths_N.tolist() == store.weights_N.tolist() == []
    places = [f"{path}:{line}" for line in (1, 2, 3)]
    assert store.stats == EncodingStats(dialogues=3, without_response=3, examples={"without a response": places})


@pytest.mark.parametrize("over_length", ["drop", "keep_first"])
def test_every_dialogue_read_is_accounted_for(tmp_path, chat, open_quietly, over_length):
    path = tmp_path / "d.jsonl"
    turns = [
        [("user", "hi")],
        [("user", "hi"), ("assistant", "x" * 500)],
        [("assistant", "a"), ("assistant", "b" * 500)],
    ]
    records = [{"messages": [{"role": role, "content": text} for role, text in turn]} for turn in [*turns, *turns[:2]]]
    path.write_text("".join(line(n) for n in range(9)) + "\n".join(map(json.dumps, records)))
    store = open_quietly([path], EncodingSpec(chat, DataConfig(sequence_length=200, over_length=over_length)))
    c = store.stats
    kept, dropped = {"drop": (9, 3), "keep_first": (10, 2)}[over_length]
    assert (c.dialogues, c.kept, c.without_response, c.over_length_dropped) == (14, kept, 2, dropped)
    assert c.dialogues == c.kept + c.without_response + c.over_length_dropped
    assert (c.responses, c.over_length_responses) == (13, 13 - kept)
    assert len(store) == c.kept
    assert c.tokens == store.lengths_N.sum()
    masks = [store[i].response_mask_N for i in range(len(store))]
    assert c.supervised_tokens == sum((mask > 0).sum() for mask in masks)
    assert c.supervised_weight == store.weights_N.sum() == sum(mask.sum() for mask in masks)


def test_the_digest_of_the_content_is_that_of_the_columns_it_always_had(files, spec, open_quietly):
    # Checkpoints keep it, and a run is refused on other data: a new column must not change it.
    store = open_quietly(files, spec)
    digest = hashlib.sha256()
    for name in ("tokens_N", "parents_N", "response_mask_N", "turn_ids_N", "message_ids_N", "lengths"):
        digest.update(hashlib.sha256((store.path / name).read_bytes()).digest())
    assert store.content == digest.hexdigest()


# Several files


def test_a_compressed_file_holds_the_same(files, spec, open_quietly, tmp_path):
    whole = open_quietly(files, spec)
    packed = tmp_path / "first.jsonl.gz"
    packed.write_bytes(gzip.compress(files[0].read_bytes()))
    store = open_quietly([packed, files[1]], spec)
    assert (store.content, store.stats) == (whole.content, whole.stats)
    assert [store.source(i) for i in (0, 9, 10)] == [(packed, 1), (packed, 10), (files[1], 2)]


def test_equal_words_have_equal_digests_and_no_others(tmp_path, spec, open_quietly):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    weighted = json.loads(line(1))
    weighted["messages"][1]["weight"] = 0.5
    call = {"role": "assistant", "content": "it is 1it is 1", "reasoning_content": "hm"}
    first.write_text(line(1) + line(2) + line(1, id="x"))
    said = [{"role": "user", "content": "what is 1?"}, call]
    second.write_text(line(2, id="y") + json.dumps(weighted) + "\n" + line(3) + json.dumps({"messages": said}))
    lenient = spec.with_config(unfaithful="emit")
    store = open_quietly([first, second], lenient)
    one, two, again, two_too, weighty, three, other = store.digests_N.tolist()
    assert (one, two) == (again, two_too)
    assert weighty == one
    assert len({one, two, three, other}) == 4


def test_other_documents_make_other_digests_where_the_template_reads_them(tmp_path, spec, chat, open_quietly):
    path = tmp_path / "d.jsonl"
    keys = [{"documents": [{"text": "a"}]}, {"documents": [{"text": "b"}]}, {"lang": "en"}, {"lang": "fr"}]
    path.write_text("".join(line(1, **beside) for beside in keys))
    one, two, english, french = open_quietly([path], spec).digests_N.tolist()
    assert one == two == english == french
    reading = "{% for d in documents or [] %}{{ d.text }}{% endfor %}" + CHATML
    reading = replace(spec, chat=replace(chat, templates={"default": reading}))
    one, two, english, french = open_quietly([path], reading).digests_N.tolist()
    assert len({one, two, english}) == 3
    assert english == french


def test_other_keys_of_a_message_make_other_digests_where_the_template_reads_them(tmp_path, spec, chat, open_quietly):
    path = tmp_path / "d.jsonl"
    dialogues = [json.loads(line(1)) for _ in range(2)]
    for dialogue, name in zip(dialogues, ("Ada", "Bob")):
        dialogue["messages"][0]["speaker"] = name
    path.write_text("".join(json.dumps(dialogue) + "\n" for dialogue in dialogues))
    one, two = open_quietly([path], spec).digests_N.tolist()
    assert one == two
    reading = "{% for m in messages %}{{ m.speaker }}{% endfor %}" + CHATML
    reading = replace(spec, chat=replace(chat, templates={"default": reading}))
    one, two = open_quietly([path], reading).digests_N.tolist()
    assert one != two


# Nothing is an error


def test_a_lenient_recipe_counts_what_it_cannot_read_and_what_is_refused(tmp_path, spec, chat, open_quietly):
    path = tmp_path / "d.jsonl"
    no_user = json.dumps({"messages": [{"role": "system", "content": "hm"}, *json.loads(line(3))["messages"]]}) + "\n"
    path.write_text(line(1) + "not JSON\n" + no_user + "\n" + line(2) + '{"messages": 3}\n')
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('a user speaks first') }}{% endif %}" + CHATML
    strict = replace(spec, chat=replace(chat, templates={"default": strict}))
    store = open_quietly([path], strict.without_errors())
    c = store.stats
    assert (c.unreadable, c.dialogues, c.kept, c.refused) == (2, 3, 2, 1)
    assert [store.source(i) for i in range(len(store))] == [(path, 1), (path, 5)]
    assert [place.split(": ")[0] for place in c.examples["unreadable"]] == [f"{path}:2", f"{path}:6"]
    assert c.examples["refused"][0].startswith(f"{path}:3: message 2: the chat template chatml refuses it (a user ")
    path.write_text(no_user)
    with pytest.raises(InputError, match=rf"^{path}:1: message 2: the chat template chatml refuses it \(a user spea"):
        open_quietly([path], strict)


# When it is built


def test_a_second_opening_tokenises_nothing(files, spec, open_quietly, monkeypatch):
    first = open_quietly(files, spec)
    monkeypatch.setattr(stores, "_build", None)
    second = open_quietly(files, spec)
    assert second.path == first.path
    assert tokens_of(second) == tokens_of(first)


def test_a_copy_of_the_files_elsewhere_is_the_same_store(files, spec, open_quietly, build_calls, tmp_path):
    open_quietly(files, spec)
    (tmp_path / "copy").mkdir()
    copies = [(tmp_path / "copy" / path.name) for path in files]
    for path, copy in zip(files, copies):
        copy.write_bytes(path.read_bytes())
    assert open_quietly(copies, spec).source(0) == (copies[0], 1)
    assert len(build_calls) == 1


def test_one_changed_byte_of_a_file_is_another_store(files, spec, open_quietly):
    before = open_quietly(files, spec)
    files[1].write_text(files[1].read_text().replace("what", "What", 1))
    after = open_quietly(files, spec)
    assert after.path != before.path
    assert after.content != before.content
    assert tokens_of(after) != tokens_of(before)


HEADED = "{{ 'Today is ' ~ strftime_now('%d') }}" + CHATML
CHATS = {
    "other tokenizer": lambda chat: replace(
        chat, tokenizer=sentencepiece.train_sentencepiece(["it is what it is?"] * 9, 290, MARKERS)
    ),
    "other template": lambda chat: replace(chat, templates={"default": CHATML.replace("'\\n'", "'\\n '", 1)}),
    "other variables": lambda chat: replace(chat, variables='{"enable_thinking": false}'),
}
OPTIONS = {"split": (0.0, 0.5), "lenient": True}
KEYS = [key.name for key in fields(DataConfig)]


def test_every_option_of_a_spec_is_tried():
    assert {*OPTIONS} == {field.name for field in fields(EncodingSpec)} - {"chat", "config"}
    assert {*KEYS} > KEYS_OF_OTHERS


@pytest.mark.parametrize("change", [*CHATS, *OPTIONS, *KEYS, "order of files"])
def test_another_spec_is_another_store(files, chat, spec, change):
    other = replace(spec, chat=CHATS[change](chat)) if change in CHATS else spec
    other = replace(other, **{change: OPTIONS[change]}) if change in OPTIONS else other
    other = other.with_config(**{change: "another value"}) if change in KEYS else other
    wanted = files[::-1] if change == "order of files" else files
    same = store_key.store_key(wanted, other) == store_key.store_key(files, spec)
    assert same == (change in KEYS_OF_OTHERS)
    assert store_key.store_key([*files], spec) == store_key.store_key(files, spec)


def test_the_date_matters_to_templates_that_read_the_clock_and_to_no_other(files, chat, spec):
    def cache_key(templates, date):
        dated = replace(chat, templates={"default": templates}, date=date)
        return store_key.store_key(files, replace(spec, chat=dated))

    assert cache_key(CHATML, "2026-01-31") == cache_key(CHATML, "2026-02-01")
    assert cache_key(HEADED, "2026-01-31") != cache_key(HEADED, "2026-02-01")
    assert cache_key(HEADED, "2026-01-31") == cache_key(HEADED, "2026-01-31")


def test_changed_code_is_another_store(files, spec, open_quietly, build_calls, monkeypatch):
    before = open_quietly(files, spec)
    monkeypatch.setattr(store_key, "code_digest", lambda: "other")
    assert open_quietly(files, spec).path != before.path
    assert len(build_calls) == 2


@pytest.fixture
def copied_package(tmp_path, monkeypatch):
    """The code that makes tokens, copied, so that a test may change it."""
    package = tmp_path / "mtsft"
    shutil.copytree(Path(mtsft.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(mtsft, "__file__", str(package / "__init__.py"))
    return package


@pytest.mark.parametrize("folder", store_key.MAKES_TOKENS)
def test_the_digest_is_of_all_code_that_makes_tokens(copied_package, folder):
    before = store_key.code_digest()
    (copied_package / "diagnose" / "more.py").write_text("")
    assert store_key.code_digest() == before  # which makes none
    (copied_package / folder / "inner").mkdir()
    (copied_package / folder / "inner" / "more.py").write_text("")
    deeper = store_key.code_digest()
    next((copied_package / folder).glob("*.py")).write_text("changed")
    assert len({before, deeper, store_key.code_digest()}) == 3


@pytest.mark.parametrize("name", ["store.py", "open_store.py", "dialogue_hashes.py"])
def test_the_digest_is_of_what_writes_stores(copied_package, name):
    before = store_key.code_digest()
    (copied_package / "data" / name).write_text("changed")
    assert store_key.code_digest() != before


def test_every_folder_that_encoding_imports_makes_tokens():
    """What a process that encodes has loaded of the package, but for what carries values and errors."""
    script = (
        "import sys, mtsft.data.data_files; print(*{m.split('.')[1] for m in sys.modules if m.startswith('mtsft.')})"
    )
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, cwd=Path(mtsft.__file__).parents[1], capture_output=True, text=True, check=True)
    known = {"buckets", "config", "data", "errors", "files", "hub", "processes", "progress"}
    assert {*run.stdout.split()} - known == {*store_key.MAKES_TOKENS}


@pytest.mark.parametrize("library", ["jinja2", "tokenizers", "sentencepiece"])
def test_the_digest_is_of_the_versions_of_libraries(monkeypatch, library):
    before, version = store_key.code_digest(), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0" if name == library else version(name))
    assert store_key.code_digest() != before


def test_what_a_killed_build_left_is_built_anew(files, spec, open_quietly, tmp_path):
    whole = open_quietly(files, spec)
    content = {path.name: path.read_bytes() for path in whole.path.iterdir() if path.is_file()}
    half = whole.path.with_suffix(".tmp")
    whole.path.rename(half)
    (half / "tokens_N").write_bytes(b"half")
    (half / "junk").write_bytes(b"left over")
    again = open_quietly(files, spec)
    assert {path.name: path.read_bytes() for path in again.path.iterdir() if path.is_file()} == content
    assert left_behind(tmp_path / "stores") == [again.path.name]


# Where it cannot be kept


@pytest.mark.parametrize(("place", "reason"), [("d", "Not a directory"), ("d/below", "Not a directory")])
def test_a_cache_that_is_no_folder_is_named(files, spec, tmp_path, place, reason):
    (tmp_path / "d").touch()
    folder = tmp_path / place / "stores"
    with pytest.raises(InputError, match=rf"^data\.cache_dir: {tmp_path}/d.* cannot be used \({reason}\); name anoth"):
        open_store(files, spec, folder, workers=1, progress=False)


@pytest.mark.parametrize("suffix", [".lock", ""])
def test_a_cache_that_another_user_made_is_named(files, spec, open_quietly, monkeypatch, suffix):
    path = open_quietly(files, spec).path.with_suffix(suffix)
    path = path if suffix else path / "tokens_N"
    path.unlink()
    path.symlink_to("/proc/nothing/here")
    reason = "No such file or directory"
    with pytest.raises(InputError, match=rf"{path} cannot be used \({reason}\); .* --config\.data\.cache_dir=FOLDER$"):
        open_quietly(files, spec)


def test_a_full_disk_is_not_said_to_be_the_wrong_folder(tmp_path):
    with pytest.raises(OSError, match="No space left on device"), in_cache(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


# By how many processes


def test_the_content_does_not_depend_on_processes_or_pieces(files, spec, tmp_path, small_pieces):
    def build(name, workers):
        store = open_store(files, spec, tmp_path / name, workers, progress=False)
        return store.content, {path.name: path.read_bytes() for path in store.path.iterdir() if path.is_file()}

    whole = build("whole", 1)
    small_pieces(1)
    assert build("one", 1) == whole
    small_pieces(200)
    assert build("two", 2) == whole


def test_the_content_changes_with_any_token_or_weight(tmp_path, spec, open_quietly):
    def content(*lines):
        path = tmp_path / "d.jsonl"
        path.write_text("".join(lines))
        return open_quietly([path], spec).content

    weighted = json.loads(line(1))
    weighted["messages"][1]["weight"] = 0.5
    some = [content(line(1), line(2)), content(line(1), line(3)), content(line(2), line(1)), content(line(1))]
    some.append(content(json.dumps(weighted) + "\n", line(2)))
    assert len(set(some)) == 5
    assert content(line(1, id="a"), "\n", line(2, id="b")) == some[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_names_its_line_and_leaves_nothing_behind(files, spec, tmp_path, small_pieces, workers):
    small_pieces(200)
    with files[0].open("a") as file:
        file.write("not JSON\n")
    with pytest.raises(InputError, match=rf"^{files[0]}:11: not JSON"):
        open_store(files, spec, tmp_path / "stores", workers, progress=False)
    assert left_behind(tmp_path / "stores") == []


def test_supervised_words_of_another_message_are_found_in_their_tree(files, spec, open_quietly, small_parts):
    store = open_quietly(files, spec)
    assert store.other_authors() == []
    # Each response is counted once, whichever part of the trees it is in.
    whole = store.responses(lambda token: False).tolist()
    assert [row[:2] for row in whole] == [
        [tree, message]
        for tree in range(len(store))
        for message in np.unique(store[tree].response_ids_N[store[tree].response_mask_N != 0]).tolist()
    ]
    for tree, message, words in whole:
        own = (store[tree].message_ids_N == message) & (store[tree].response_mask_N != 0)
        assert words == own.sum()
    columns = store.path / "message_ids_N"
    authors = np.fromfile(columns, np.int32)
    starts = np.cumsum([0, *store.lengths_N])
    for tree in (2, 11):
        slot = starts[tree] + np.flatnonzero((store[tree].response_mask_N != 0) & (store[tree].message_ids_N >= 0))[0]
        authors[slot] += 1
    authors[starts[5] + np.flatnonzero(store[5].response_mask_N == 0)[-1]] = 7  # of context: no matter
    columns.chmod(0o644)
    authors.tofile(columns)
    assert open_quietly(files, spec).other_authors() == [2, 11]
