"""What the cache holds, and what of it may be removed: never what is in use, nor what is somebody else's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from records import line

import mtsft
from mtsft.data import store_use
from mtsft.data.cache import GRACE, cache_entries, make_room, remove_all, remove_entry
from mtsft.data.cache_lock import locked, locked_at_once, note_use
from mtsft.data.open_store import open_store
from mtsft.data.store import Store
from mtsft.data.store_use import users

HASH = "0123456789abcdef" * 4


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def build(cache, tmp_path, spec):
    """Builds (or finds) the store of so many dialogues, and gives its folder; the store is not in use afterwards."""

    def make(count, **changes):
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(line(n) for n in range(count)))
        return open_store([path], spec.with_config(**changes), cache / "stores", 1, progress=False).path

    return make


def last_used(path, seconds_ago):
    """Makes a store, or a file, one that was last used so long ago."""
    at = time.time() - seconds_ago
    os.utime(path / "index.json" if path.is_dir() else path, (at, at))


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def put(path, size=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def test_what_is_there_is_listed_with_what_it_is_of(cache, build, tmp_path):
    store = build(3)
    model = put(cache / "tokenizers" / f"{HASH[:32]}.model", 11)
    corpus = put(cache / "corpora" / f"recall-train-20-0-{HASH[:16]}.jsonl", 12)
    program = put(cache / "compiled" / f"jit_step-{HASH}-cache", 13)
    copy = put(cache / "buckets" / HASH[:16] / "gs" / "ours" / "data" / "a.jsonl", 14)
    for ago, path in enumerate((model, corpus, program, store, copy)):
        last_used(path, 100 - 10 * ago)
    entries = cache_entries(cache)
    assert [(e.kind, e.path, e.users) for e in entries] == [
        ("tokenizers", model, ()),
        ("corpora", corpus, ()),
        ("compiled", program, ()),
        ("stores", store, ()),
        ("buckets", cache / "buckets" / HASH[:16], ()),
    ]
    assert [e.size for e in entries] == [11, 12, 13, sum(f.stat().st_size for f in store.iterdir() if f.is_file()), 14]
    assert [round(time.time() - e.used, -1) for e in entries] == [100, 90, 80, 70, 60]
    assert entries[4].of == "a copy of gs://ours/data/a.jsonl"
    assert remove_entry(entries[4])
    assert not (cache / "buckets" / HASH[:16]).exists()
    tokens = Store(store, [])._columns["tokens_N"].size
    assert entries[3].of == f"{tmp_path}/3.jsonl, {tokens} tokens, template chatml, rows of 512"
    assert entries[3].id == store.name


def test_nothing_of_others_is_listed_or_removed(cache, build, tmp_path):
    store, mixed = build(3), build(4)
    precious = put(tmp_path / "precious" / "index.json")
    others = [
        put(cache / "notes.txt"),
        put(cache / "stores" / "readme.md"),
        put(cache / "stores" / HASH[:31] / "index.json"),  # no name of ours
        put(cache / "stores" / HASH[:32] / "tokens_N"),  # no index
        put(mixed / "my.notes"),
        put(cache / "tokenizers" / "mine.model"),
        put(cache / "corpora" / "mine.jsonl"),
        put(cache / "compiled" / "mine-cache"),
        put(cache / "compiled" / HASH / f"jit_step-{HASH}-cache"),
    ]
    (cache / "stores" / HASH[8:40]).symlink_to(precious.parent)
    (cache / "tokenizers" / f"{HASH[:32]}.model").symlink_to(precious)
    assert [entry.path for entry in cache_entries(cache)] == [store]
    removed, left = remove_all(cache_entries(cache))
    assert ([entry.path for entry in removed], left) == ([store], [])
    assert all(path.exists() for path in (*others, precious, mixed / "tokens_N"))
    assert not store.exists()
    assert not store.with_name(f"{store.name}.lock").exists()


def test_room_is_made_by_what_was_not_used_for_longest(cache, build):
    stores = [build(count) for count in (3, 4, 5)]
    for ago, store in zip((10, 30, 20), stores):
        last_used(store, ago)
    sizes = {entry.path: entry.size for entry in cache_entries(cache)}
    assert make_room(cache, 0) == make_room(cache, sum(sizes.values())) == []
    assert [entry.path for entry in make_room(cache, sum(sizes.values()) - 1)] == [stores[1]]
    assert [store.exists() for store in stores] == [True, False, True]
    assert [entry.path for entry in make_room(cache, 1)] == [stores[2], stores[0]]
    assert cache_entries(cache) == []


def test_to_open_a_store_is_to_use_it(cache, build):
    first, second = build(3), build(4)
    last_used(first, 100)
    last_used(second, 50)
    assert [entry.path for entry in cache_entries(cache)] == [first, second]
    assert build(3) == first
    assert [entry.path for entry in cache_entries(cache)] == [second, first]


def test_to_use_a_file_changes_no_time_but_that_of_its_use(tmp_path):
    path = put(tmp_path / "x.model")
    os.utime(path, ns=(5, 1_700_000_000_123_456_789))
    note_use(path)
    assert path.stat().st_mtime_ns == 1_700_000_000_123_456_789
    assert abs(path.stat().st_atime - time.time()) < 60


def test_files_that_were_just_used_stay_when_room_is_made(cache):
    old, young = (put(cache / "tokenizers" / f"{name * 32}.model") for name in "ab")
    last_used(old, GRACE + 60)
    last_used(young, GRACE - 60)
    assert [entry.path for entry in make_room(cache, 1)] == [old]
    assert young.exists()
    assert remove_entry(cache_entries(cache)[0])  # asked for it goes
    assert not young.exists()


def test_a_build_makes_room(cache, build, capsys):
    first = build(3)
    size = cache_entries(cache)[0].size
    assert capsys.readouterr().err == ""
    second = build(4, cache_bytes=size + 1)
    assert [entry.path for entry in cache_entries(cache)] == [second]
    assert capsys.readouterr().err == (
        f"{cache}: removed what was not used for longest (1 of stores and other files, 0.00 GB), to hold no more than "
        f"data.cache_bytes={size + 1}\n"
    )
    assert not first.exists()


def test_the_limit_is_no_part_of_what_a_store_is(build):
    assert build(3, cache_bytes=10**9) == build(3, cache_bytes=0)


# In use


def test_a_store_that_is_open_stays(cache, tmp_path, spec, monkeypatch):
    path = tmp_path / "d.jsonl"
    path.write_text(line(1))
    store = open_store([path], spec, cache / "stores", 1, progress=False)
    again, folder, me = Store(store.path, store.files), store.path, f"process {os.getpid()} on {os.uname().nodename}"
    (entry,) = cache_entries(cache)
    assert entry.users == (me, me)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", None)  # it is not even moved
        assert remove_all([entry]) == ([], [entry])
    del store
    assert make_room(cache, 1) == []
    assert users(folder) == [me]
    assert len(again[0].tokens_N) == again.lengths_N[0]
    del again
    assert users(folder) == []
    assert [one.path for one in make_room(cache, 1)] == [folder]


@pytest.fixture
def other_process(cache, tmp_path, spec):
    """A process that has a store open: (process, the store's folder)."""
    path = tmp_path / "d.jsonl"
    path.write_text(line(1))
    folder = open_store([path], spec, cache / "stores", 1, progress=False).path
    script = (
        "import sys, time; from pathlib import Path; from mtsft.data.store import Store; "
        "store = Store(Path(sys.argv[1]), []); print('open', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, cwd=Path(mtsft.__file__).parents[1], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"open\n"
        yield process, folder
        process.kill()


def test_a_store_of_another_process_stays_until_that_ends_even_if_it_is_killed(cache, other_process):
    process, folder = other_process
    (entry,) = cache_entries(cache)
    assert entry.users == (f"process {process.pid} on {os.uname().nodename}",)
    assert not remove_entry(entry)
    assert folder.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    (entry,) = cache_entries(cache)
    assert entry.users == ()
    assert names(folder / "users") == []
    assert remove_entry(entry)
    assert names(cache / "stores") == []


def test_a_store_of_another_host_stays_while_its_file_is_renewed(cache, build):
    folder = build(3)
    record = folder / "users" / "0011223344556677.json"
    record.write_text(json.dumps({"host": "far", "pid": 7, "place": "another boot", "started": "1"}))
    last_used(record, store_use.PATIENCE - 60)
    (entry,) = cache_entries(cache)
    assert (entry.users, remove_entry(entry)) == (("process 7 on far",), False)
    last_used(record, store_use.PATIENCE + 60)
    assert cache_entries(cache)[0].users == ()
    assert names(folder / "users") == []
    assert remove_entry(cache_entries(cache)[0])


def test_a_process_renews_its_files_and_leaves_none(cache, build):
    folder = build(3)
    script = (
        "import os, sys, time; from pathlib import Path; from mtsft.data import store_use; store_use.BEAT = 0.05\n"
        "from mtsft.data.store import Store; store = Store(Path(sys.argv[1]), [])\n"
        "(record,) = (store.path / 'users').glob('*.json'); os.utime(record, (1, 1)); end = time.time() + 60\n"
        "while record.stat().st_mtime < 2 and time.time() < end: time.sleep(0.01)\n"
        "print(record.stat().st_mtime > 1)"
    )
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, cwd=Path(mtsft.__file__).parents[1], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert names(folder / "users") == []


def test_a_store_that_is_opened_while_it_is_removed_is_given_back(cache, build, monkeypatch):
    folder = build(3)
    rename = Path.rename
    record = folder / "users" / "0011223344556677.json"

    def opened_just_before(path, target):
        if path == folder:
            record.write_text(json.dumps({"host": "far", "pid": 7, "place": "another boot"}))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", opened_just_before)
    (entry,) = cache_entries(cache)
    before = names(cache / "stores")
    assert not remove_entry(entry)
    assert {*names(cache / "stores")} - {*before} == {f"{folder.name}/users/{record.name}"}


def test_what_is_being_built_stays_and_what_was_left_half_built_goes(cache, build):
    folder = build(3)
    half = folder.rename(folder.with_name(f"{folder.name}.tmp"))
    (half / "index.json").unlink()
    (entry,) = cache_entries(cache)
    assert (entry.path, entry.is_whole) == (half, False)
    with locked(folder.with_name(f"{folder.name}.lock")):
        assert not remove_entry(entry)
    assert make_room(cache, 1) == []  # it may be another host's, whose lock is not seen here
    assert remove_entry(entry)
    assert names(cache / "stores") == []


def test_who_waits_for_a_lock_whose_file_is_removed_takes_the_new_one(tmp_path):
    path = tmp_path / "a.lock"
    script = (
        "import sys; from pathlib import Path; from mtsft.data.cache_lock import locked\n"
        "print('begun', flush=True)\n"
        "with locked(Path(sys.argv[1])): print(Path(sys.argv[1]).exists(), flush=True)"
    )
    command = [sys.executable, "-c", script, str(path)]
    with locked_at_once(path) as is_held:
        assert is_held
        process = subprocess.Popen(command, cwd=Path(mtsft.__file__).parents[1], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"begun\n"
        with locked_at_once(path) as is_held_again:
            assert not is_held_again
        time.sleep(0.3)
    with process:
        assert process.communicate(timeout=60)[0] == b"True\n"
    assert path.exists()
