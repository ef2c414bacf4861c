"""What goes wrong on the way, and what is left of a run then: one line, exit status 2, and the last good checkpoint."""

import shutil
import subprocess
from types import SimpleNamespace

import pytest
from flow_support import read_lines, run, write_config
from test_resume import saved_arrays

from mtsft import cli
from mtsft.errors import InputError

DIVERGING = ["--config.train.steps=20", "--config.train.learning_rate=1e38", "--config.train.max_bad_steps=3"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """One config for all: what is compiled for one run is there for the next of as many steps."""
    return write_config(tmp_path_factory.mktemp("failures"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, config):
    """A cache of its own, in which `prepare` has run; (the cache, what was printed, when each file was made)."""
    cache = tmp_path_factory.mktemp("prepared")
    out, _ = run("prepare", f"--config={config}", f"--config.data.cache_dir={cache}")
    return cache, out, made_in(cache)


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory, config, prepared):
    """The run of four steps from which others go on, each in a copy; (its folder, what was printed)."""
    workdir = tmp_path_factory.mktemp("four") / "run"
    flags = f"--config={config}", f"--config.data.cache_dir={prepared[0]}", f"--workdir={workdir}"
    out, _ = run("train", *flags, "--config.eval.every=0", "--config.train.steps=4")
    return workdir, out


def made_in(folder):
    """When each file was made; the time of an index, and what is in `users`, say when a store was last used."""
    made = {path: path.stat() for path in folder.rglob("*") if path.suffix != ".lock" and path.name != "users"}
    return {path: (at.st_ino, at.st_mtime_ns * (path.name != "index.json")) for path, at in made.items()}


def everything_in(folder):
    """The bytes of every file."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def the_one_line(err, door="train"):
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith(f"{door}: ")]
    assert len(lines) == 1, err
    assert err.endswith(lines[0] + "\n")
    return lines[0]


@pytest.fixture
def tiny_disk(tmp_path):
    """Mounts a disk of so many kilobytes and returns its folder; skips where this is not permitted."""
    mounted = []

    def mount(kilobytes):
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs the right to mount a small disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_loss_that_stays_not_finite_stops_the_run_at_its_last_good_checkpoint(tmp_path, config, four_steps):
    workdir = shutil.copytree(four_steps[0], tmp_path / "run")
    flags = [f"--config={config}", f"--workdir={workdir}", "--config.eval.every=0"]
    checkpoints, logged = everything_in(workdir / "checkpoints"), read_lines(workdir / "metrics.jsonl")
    arrays = saved_arrays(workdir, 4)

    _, err = run("train", *flags, *DIVERGING, status=2)
    line = the_one_line(err)
    assert "not finite for 3 steps in a row; the last good checkpoint is at step 4; " in line
    assert "lower train.learning_rate" in line
    assert everything_in(workdir / "checkpoints") == checkpoints
    records = read_lines(workdir / "metrics.jsonl")
    assert records[:4] == logged
    assert [record["skipped_steps"] for record in records[-3:]] == [1, 2, 3]

    out, _ = run("train", *flags, "--config.train.steps=8")
    assert "resuming after step 4 of 8" in out
    assert [(record["step"], record["skipped_steps"]) for record in read_lines(workdir / "metrics.jsonl")] == [
        (step, 0) for step in range(1, 9)
    ]
    for name, array in saved_arrays(workdir, 4).items():
        assert (array == arrays[name]).all(), name


def test_a_loss_that_is_not_finite_from_the_start_names_no_checkpoint(tmp_path, config):
    flags = [f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.eval.every=0"]
    _, err = run("train", *flags, *DIVERGING, status=2)
    line = the_one_line(err)
    assert "not finite for 3 steps in a row; " in line
    assert "None" not in line
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


@pytest.mark.slow
def test_a_full_disk_at_a_save_leaves_the_last_good_checkpoint(config, tiny_disk, four_steps):
    disk = tiny_disk(8000)
    workdir = shutil.copytree(four_steps[0], disk / "run")
    flags = [f"--config={config}", f"--workdir={workdir}", "--config.eval.every=0"]
    arrays = saved_arrays(workdir, 4)
    free = subprocess.run(["df", "--output=avail", "-k", disk], check=True, capture_output=True, text=True).stdout
    filler = disk / "filler"
    filler.write_bytes(bytes((int(free.split()[1]) - 64) * 1024))  # room for the metrics, not for a checkpoint

    _, err = run("train", *flags, "--config.train.steps=8", status=2)
    line = the_one_line(err)
    assert "the disk is full" in line
    assert "the last good checkpoint is at step 4" in line
    after = saved_arrays(workdir, 4)
    assert after.keys() == arrays.keys()
    assert all((after[name] == array).all() for name, array in arrays.items())

    filler.unlink()
    out, _ = run("train", *flags, "--config.train.steps=8")
    assert "resuming after step 4 of 8" in out
    assert [record["step"] for record in read_lines(workdir / "metrics.jsonl")] == list(range(1, 9))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["4", "8"]


@pytest.mark.parametrize("door", ["train", "chat"])
def test_a_checkpoint_that_was_cut_is_told_in_one_line_and_nothing_beside_it(tmp_path, config, four_steps, door):
    workdir = shutil.copytree(four_steps[0], tmp_path / "run")
    for path in (workdir / "checkpoints" / "4" / "default").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:100])
    flags = [f"--config={config}", "--config.eval.every=0", "--config.train.steps=8"] if door == "train" else []
    _, err = run(door, *flags, f"--workdir={workdir}", status=2)
    assert the_one_line(err, door).startswith(f"{door}: {workdir}/checkpoints/4: this checkpoint cannot be read ")
    assert len(err.splitlines()) == 1, err


def test_a_full_workdir_is_told_by_the_file_that_was_written(config, tiny_disk):
    disk = tiny_disk(8)
    _, err = run("train", f"--config={config}", f"--workdir={disk / 'run'}", status=2)
    assert the_one_line(err) == (
        f"train: {disk}/run/tokenizer/tokenizer.model: No space left on device; free some space and run the same "
        "command again"
    )
    assert list(disk.rglob("*.tmp")) == []


def test_warnings_of_libraries_are_one_line_of_a_kind(config, tiny_disk, tmp_path):
    flags = [f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.eval.every=0", "--config.train.steps=2"]
    compiled = f"--config.parallel.compilation_cache={tiny_disk(4) / 'compiled'}"  # of which several programs are kept
    out, err = run("train", *flags, compiled)
    (line,) = err.splitlines()
    assert line.startswith("train: Error writing persistent compilation cache entry for ")
    assert "No space left on device (UserWarning of " in line
    assert "\r" not in out
    assert out.splitlines()[-4:-3] == ["next:"]


@pytest.mark.parametrize("kilobytes", [4, 40, 90])
def test_a_full_disk_while_tokenising_leaves_nothing_half_written(config, tiny_disk, kilobytes):
    cache = tiny_disk(kilobytes)
    _, err = run("prepare", f"--config={config}", f"--config.data.cache_dir={cache}", status=2)
    line = the_one_line(err, "prepare")
    assert "No space left on device" in line
    assert "free some space" in line
    assert list(cache.rglob("*.tmp")) == []
    assert [path for path in cache.rglob("stores/*") if path.suffix != ".lock"] == []


def test_what_was_prepared_is_not_tokenised_again(prepared, four_steps):
    cache, out, before = prepared
    assert {path.name for path in before} >= {"tokens_N", "index.json"}
    _, trained = four_steps
    assert trained.splitlines()[0] == out.splitlines()[0]
    assert made_in(cache) == before


@pytest.mark.parametrize("door", ["prepare", "train", "evaluate"])
def test_help_says_what_a_door_is_for(door):
    out, err = run(door, "--help")
    assert f"python -m mtsft.{door} --config=" in out
    assert "--config" in out
    assert err == ""


def test_what_cannot_be_written_at_the_end_is_named_and_what_can_leaves_nothing_behind(tmp_path):
    flag = SimpleNamespace(name="generate", value=str(tmp_path / "folder" / "replies.jsonl"))
    (tmp_path / "folder").mkdir()
    cli.check_output(flag)
    assert everything_in(tmp_path) == {}
    cli.write_output(flag, b"{}\n")
    cli.check_output(flag)
    assert list(everything_in(tmp_path).values()) == [b"{}\n"]
    shutil.rmtree(tmp_path / "folder")
    says = rf"^--generate={flag.value}: No such file or directory; name a file that can be written$"
    with pytest.raises(InputError, match=says):
        cli.write_output(flag, b"{}\n")
    flag.value = "~none-such/replies.jsonl"
    with pytest.raises(InputError, match=r"^~none-such/replies.jsonl: there is no such home folder; write the path wi"):
        cli.check_output(flag)
