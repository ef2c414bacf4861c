"""Files and folders of buckets, against object stores on loopback."""

import gzip
import json
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import save_file

from mtsft import buckets
from mtsft.buckets import bucket_path, create, local_copy, names_in, read_range, size_of, upload
from mtsft.dialogue.find_files import find_files, find_weighted_files
from mtsft.errors import InputError
from mtsft.files import append_line, atomic_write, check_writable, path_of
from mtsft.interop.atomic_folder import AtomicFolder
from mtsft.interop.safetensors_io import file_digest, read_box, read_header
from mtsft.runs import lock
from mtsft.runs.lock import WorkdirLock
from mtsft.training import staged_folder
from mtsft.training.staged_folder import StagedFolder

pytestmark = pytest.mark.parity


def test_a_file_is_written_whole_appended_to_and_read_by_ranges(bucket, monkeypatch):
    path = path_of(f"{bucket}/a/b.txt")
    check_writable(path)
    assert names_in(path_of(bucket)) == []
    atomic_write(path, b"0123456789")
    assert (path.read_bytes(), size_of(path)) == (b"0123456789", 10)
    for part in (1, 3, 100):
        monkeypatch.setattr(buckets, "_PART", part)
        assert [read_range(path, 2, 5), read_range(path, 0, 10)] == [b"234", b"0123456789"]
    append_line(path, "next")
    append_line(path_of(f"{bucket}/new"), "first")
    assert path.read_bytes() == b"0123456789next\n"
    assert names_in(path_of(bucket)) == ["a/b.txt", "new"]
    assert not create(path, b"other")
    assert create(path_of(f"{bucket}/other"), b"other")
    assert path_of(f"{bucket}/other").read_bytes() == b"other"
    with pytest.raises(OSError, match="none"):
        size_of(path_of(f"{bucket}/none"))


def test_a_copy_is_fetched_once_for_each_version(bucket, tmp_path):
    path = path_of(f"{bucket}/d.jsonl")
    atomic_write(path, b"one")
    first = local_copy(path, tmp_path)
    assert (first.name, first.read_bytes(), tmp_path / "buckets" in first.parents) == ("d.jsonl", b"one", True)
    written = first.stat().st_mtime_ns
    assert (local_copy(path, tmp_path), first.stat().st_mtime_ns) == (first, written)
    atomic_write(path, b"two")
    assert local_copy(path, tmp_path).read_bytes() == b"two"
    assert list(tmp_path.rglob("*.tmp")) == []


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_what_is_wrong_with_a_bucket_is_said_in_a_line(stores, scheme, monkeypatch):
    url = f"{scheme}://no-such-bucket/run"
    with pytest.raises(InputError, match=f"^{url}: there is no bucket no-such-bucket; make it, or correct the name$"):
        path_of(url)

    def forbidden(*_):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(buckets, "_ask", forbidden)
    with pytest.raises(InputError, match=rf"^{url}: cannot be read \(Access Denied\); see to the network and the cred"):
        path_of(url)


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_store_that_does_not_answer_is_given_up(silent, scheme):
    began = time.monotonic()
    with pytest.raises(InputError, match=f"^{scheme}://b/run: cannot be read .no answer in 1 s.; see to the network"):
        path_of(f"{scheme}://b/run")
    assert time.monotonic() - began < silent.seconds + 5


def test_an_error_of_a_bucket_is_told_from_one_of_ours(bucket):
    def error_of(function, *arguments):
        with pytest.raises(Exception) as raised:  # noqa: PT011 (of many kinds)
            function(*arguments)
        return raised.value

    assert buckets.is_failure(error_of(buckets._filesystem(bucket).cat_file, f"{bucket}/none"))
    assert buckets.is_failure(ValueError("Error writing gs://b/checkpoints/4/manifest: Malformed"))
    assert not buckets.is_failure(error_of(int, "x"))
    assert not buckets.is_failure(error_of(buckets._filesystem(bucket).cat_file, None))


def test_a_name_that_is_no_bucket_is_refused():
    with pytest.raises(InputError, match=r"^gs://: names no bucket; write gs://BUCKET/FOLDER$"):
        path_of("gs://")
    with pytest.raises(InputError, match=r"^az://b/x: az:// is of no kind that is read; use gs://, s3:// or a local"):
        path_of("az://b/x")


def test_data_is_found_as_on_a_disk(bucket, tmp_path):
    local, there = tmp_path / "local", path_of(f"{bucket}/data")
    (local / "deep" / "er").mkdir(parents=True)
    line = json.dumps({"messages": [{"role": "assistant", "content": "Yes."}]}).encode() + b"\n"
    for name in ("train-0.jsonl", "train-1.jsonl", "test.jsonl", "deep/er/x.jsonl"):
        (local / name).write_bytes(line + name.encode())
    (local / "deep" / "y.jsonl.gz").write_bytes(gzip.compress(line))
    upload(local, there)

    def names(pattern, key="data.train"):
        found = find_weighted_files(pattern, key, tmp_path / "cache")
        for file in found:
            where = str(file.path).partition("/data/")[2]
            assert file.path.read_bytes() == (local / where).read_bytes()
        return [(str(file.path).partition("/data/")[2], file.weight) for file in found]

    assert names(str(there)) == [("train-0.jsonl", 1.0), ("train-1.jsonl", 1.0)]
    assert names(str(there), "data.eval") == [("test.jsonl", 1.0)]
    assert names(f"{there}/*-1.jsonl=0.5") == [("train-1.jsonl", 0.5)]
    assert names(f"{there}/test.jsonl,{there}/deep/y.jsonl.gz=2") == [("test.jsonl", 1.0), ("deep/y.jsonl.gz", 2.0)]
    assert names(f"{there}/**/x.jsonl") == [("deep/er/x.jsonl", 1.0)]
    with pytest.raises(InputError, match=rf"^{there}/gone.jsonl: no such file; set data.train to a \.jsonl file"):
        find_files(f"{there}/gone.jsonl", "data.train")


def test_tensors_are_read_by_ranges_as_from_a_disk(bucket, tmp_path):
    rng = np.random.default_rng(0)
    tensors = {"m": rng.normal(size=(9, 7)).astype(np.float32), "v": rng.normal(size=5).astype(np.float16)}
    local, there = tmp_path / "model.safetensors", path_of(f"{bucket}/model.safetensors")
    save_file(tensors, local)
    atomic_write(there, local.read_bytes())
    ours, theirs = read_header(there), read_header(local)
    assert {name: tensor._replace(file=local) for name, tensor in ours.items()} == theirs
    assert file_digest(there) == file_digest(local)
    for name, rows, columns in (
        ("m", (0, 9), (0, 7)),
        ("m", (2, 5), (1, 4)),
        ("v", (1, 4), (0, 1)),
        ("m", (8, 9), (6, 7)),
    ):
        box = read_box(ours[name], rows, columns)
        np.testing.assert_array_equal(box, read_box(theirs[name], rows, columns), strict=True)
    atomic_write(there, local.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"^{there}: is not a whole safetensors file .*; fetch it anew$"):
        read_header(there)
    with pytest.raises(InputError, match=rf"^{there}: cannot be read \(it ends too early\); copy it anew$"):
        read_box(ours["v"], (0, 5), (0, 1))


def test_a_folder_gets_last_what_makes_it_one(bucket, tmp_path, monkeypatch):
    order, write = [], {}
    output = path_of(f"{bucket}/model")

    def fill(aside):
        for name in ("config.json", "a.txt", "z.txt"):
            (aside / name).write_text(name)

    store = buckets._filesystem(bucket)

    def put(local, remote):
        order.append(remote.rpartition("/")[2])
        if order[-1] == write.get("fails"):
            raise OSError("the network is away")
        store.pipe_file(remote, Path(local).read_bytes())

    monkeypatch.setattr(store, "put_file", put)
    write["fails"] = "config.json"
    says = f"^{output}: cannot be written .the network is away.; choose another folder$"
    with pytest.raises(InputError, match=says), AtomicFolder(output, 0) as writer:
        writer.do(fill)
    assert order == ["a.txt", "z.txt", "config.json"]
    assert names_in(output) == []

    monkeypatch.setattr("mtsft.interop.atomic_folder.remove", lambda *_, **__: None)  # killed before it could
    with pytest.raises(InputError, match="the network is away"), AtomicFolder(output, 0) as writer:
        writer.do(fill)
    assert names_in(output) == ["a.txt", "z.txt"]
    with pytest.raises(InputError, match=f"^{output}: holds a part of a model that was being written, and no config"):
        AtomicFolder(output, 0).check()

    write.clear()
    whole = path_of(f"{bucket}/whole")
    with AtomicFolder(whole, 0) as writer:
        writer.do(fill)
    assert names_in(whole) == ["a.txt", "config.json", "z.txt"]
    with pytest.raises(InputError, match=f"^{whole}: is there already"):
        AtomicFolder(whole, 0).check()


def test_a_step_without_its_mark_is_none_and_is_written_anew(bucket, tmp_path):
    folder = path_of(f"{bucket}/checkpoints")
    for name in ("3/default/a", "3/_CHECKPOINT_METADATA", "3/commit_success.txt", "6/default/a", "6/default/old"):
        atomic_write(path_of(f"{folder}/{name}"), name.encode())
    staged = StagedFolder(folder)
    try:
        steps = {path.name: sorted(file.name for file in path.iterdir()) for path in staged.local.iterdir()}
        assert steps == {"3": ["_CHECKPOINT_METADATA", "default"]}
        assert list((staged.local / "3" / "default").iterdir()) == []
        staged.fetch(3)
        assert (staged.local / "3" / "default" / "a").read_text() == "3/default/a"
        (staged.local / "6" / "default").mkdir(parents=True)
        (staged.local / "6" / "default" / "a").write_text("new")
        staged.push()
        staged.wait()
        assert names_in(folder) == [
            "3/_CHECKPOINT_METADATA", "3/commit_success.txt", "3/default/a", "6/commit_success.txt", "6/default/a",
        ]  # fmt: skip
        (staged.local / "3" / "default" / "a").unlink()
        (staged.local / "3" / "default").rmdir()
        (staged.local / "3" / "_CHECKPOINT_METADATA").unlink()
        (staged.local / "3").rmdir()
        staged.push()
    finally:
        staged.close()
    assert names_in(folder) == ["6/commit_success.txt", "6/default/a"]
    assert not staged.local.exists()


def test_several_processes_do_not_stage(stores, monkeypatch):
    monkeypatch.setattr(staged_folder.jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match=r"^s3://b/c: runs of several processes keep their checkpoints on a disk that"):
        StagedFolder(epath.Path("s3://b/c"))


def test_a_bucket_that_may_only_be_read_is_no_workdir(bucket, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError("Access Denied")

    workdir = path_of(f"{bucket}/run")
    monkeypatch.setattr(buckets._filesystem(bucket), "pipe_file", forbidden)
    says = rf"^--workdir={workdir}: cannot be written \(Access Denied\)$"
    with pytest.raises(InputError, match=says), WorkdirLock(workdir):
        pass


def test_a_workdir_is_held_by_one(bucket, monkeypatch):
    monkeypatch.setattr(lock, "_SETTLE", 0.0)
    workdir = bucket_path(f"{bucket}/run")
    with WorkdirLock(workdir):
        assert names_in(workdir) == ["lock.json"]
        with (
            pytest.raises(InputError, match=f"^--workdir={workdir}: a run is going on there, process"),
            WorkdirLock(workdir),
        ):
            pass
    assert names_in(workdir) == []
