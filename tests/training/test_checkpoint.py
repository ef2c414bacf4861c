"""What is saved is what comes back, whatever devices and layout it comes back to; and which checkpoints stay."""

import gc
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from support import small_model

from mtsft.errors import InputError
from mtsft.training.checkpoint import Checkpoints, check_same_run
from mtsft.training.optimizer import build_optimizer
from mtsft.training.sharding import make_mesh, param_shardings
from mtsft.training.state import new_state, state_shardings


class Setup:
    """A small model, its optimizer and its devices: one start of a run."""

    def __init__(self, mesh="data=8", devices=None, scan=True, optimizer="adamw", keep_ema=False):
        self.model = small_model(scan_layers=scan)
        self.optimizer = build_optimizer(optimizer, clip_norm=1.0, weight_decay=0.1, b1=0.9, b2=0.95, eps=1e-8)
        self.mesh = make_mesh(mesh, devices)
        params = jax.eval_shape(self.model.init, jax.random.key(0))
        self.shapes = jax.eval_shape(lambda params: new_state(params, self.optimizer, keep_ema), params)
        self.shardings = partial(state_shardings, optimizer=self.optimizer, mesh=self.mesh)

    def state(self, seed=0):
        """A state in which no two arrays are alike, moments and counters among them."""
        rng = np.random.default_rng(seed)
        values = [rng.integers(1, 1000, leaf.shape) / 8 for leaf in jax.tree.leaves(self.shapes)]
        state = jax.tree.unflatten(jax.tree.structure(self.shapes), values)
        placed = partial(jax.tree.map, lambda x, shape, s: jax.device_put(x.astype(shape.dtype), s))
        return placed(state, self.shapes, self.shardings(self.shapes))

    def open(self, folder, keep=2):
        return Checkpoints(epath.Path(folder), self.model, keep)

    def save(self, folder, step, state):
        with self.open(folder) as checkpoints:
            checkpoints.save(step, state, None)

    def restore(self, folder, step):
        with self.open(folder, keep=0) as checkpoints:
            return checkpoints.restore(step, self.shapes, self.shardings)


def arrays_by_name(state):
    """Every array of a state, those of each layer by themselves, however the layers are kept."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        names = [str(getattr(entry, "name", getattr(entry, "key", getattr(entry, "idx", entry)))) for entry in path]
        index = names.index("layers") + 1 if "layers" in names else None
        if index is None or names[index].isdigit():
            arrays["/".join(names)] = np.asarray(leaf)
        else:
            for i, layer in enumerate(np.asarray(leaf)):
                arrays["/".join([*names[:index], str(i), *names[index:]])] = layer
    return arrays


def assert_same_bits(restored, saved):
    restored, saved = arrays_by_name(restored), arrays_by_name(saved)
    assert restored.keys() == saved.keys()
    for name, array in saved.items():
        assert restored[name].dtype == array.dtype, name
        np.testing.assert_array_equal(restored[name], array, err_msg=name)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


ELSEWHERE = {
    "as it was": dict(mesh="data=2,fsdp=4"),
    "other axes": dict(mesh="data=8"),
    "tensor": dict(mesh="fsdp=2,tensor=4"),
    "one device": dict(mesh="", devices=slice(1)),
    "unrolled": dict(mesh="data=2,fsdp=4", scan=False),
    "unrolled on one device": dict(mesh="", devices=slice(1), scan=False),
}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
def test_a_state_comes_back_bit_for_bit_on_other_devices_and_in_another_layout(folder, scan, optimizer):
    here = Setup("data=2,fsdp=4", scan=scan, optimizer=optimizer)
    state = here.state()
    here.save(folder, 7, state)
    for where in ELSEWHERE.values():
        devices = jax.devices()[where["devices"]] if "devices" in where else None
        setup = Setup(**where | {"devices": devices}, optimizer=optimizer)
        restored = setup.restore(folder, 7)
        assert_same_bits(restored, state)
        assert jax.tree.map(lambda leaf: leaf.sharding, restored) == setup.shardings(setup.shapes)
    assert len(arrays_by_name(state)) > 50


def test_moments_are_among_what_comes_back(folder):
    here = Setup()
    here.save(folder, 1, here.state())
    names = [name for name in arrays_by_name(here.restore(folder, 1)) if name.endswith("mlp/up/kernel")]
    assert sum(name.startswith("opt_state/") for name in names) == 2 * 2  # two moments of two layers
    assert sum(name.startswith("params/") for name in names) == 2


def test_the_moving_average_is_kept_under_the_key_that_it_always_had(folder):
    """So that checkpoints of earlier versions are read."""
    setup = Setup(keep_ema=True)
    saved = setup.state()
    setup.save(folder, 3, saved)
    names = json.loads((folder / "3" / "default" / "_METADATA").read_text())["tree_metadata"]
    assert {name.split("'")[1] for name in names} == {
        *("step", "params", "opt_state", "skipped", "skipped_in_a_row", "average")
    }
    assert_same_bits(setup.restore(folder, 3), saved)
    shardings = partial(param_shardings, mesh=setup.mesh)
    with setup.open(folder, keep=0) as checkpoints:
        for field in ("params", "ema_params"):
            alone = checkpoints.restore_params(3, setup.shapes.params, shardings, field)
            assert_same_bits(alone, getattr(saved, field))


def test_parameters_come_back_alone_whatever_optimizer_trained_them(folder):
    here = Setup("data=2,fsdp=4", optimizer="muon")
    state = here.state()
    here.save(folder, 3, state)
    setup = Setup("data=8", scan=False)
    with setup.open(folder, keep=0) as checkpoints:
        params = checkpoints.restore_params(3, setup.shapes.params, partial(param_shardings, mesh=setup.mesh))
    assert_same_bits({"params": params}, {"params": state.params})


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
def test_what_is_saved_is_the_state_at_the_save_though_the_next_step_takes_its_memory(folder, scan):
    setup = Setup("data=2,fsdp=4", scan=scan)
    take_step = jax.jit(partial(jax.tree.map, lambda x: x + 1), donate_argnums=0)
    unsaved, state = setup.state(), setup.state()
    take_step(unsaved)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(unsaved))
    at_save = {}
    with setup.open(folder) as checkpoints:
        for number in (1, 2):
            at_save[number] = jax.tree.map(lambda x: np.array(x, copy=True), state)
            checkpoints.save(number, state, None)
            state = take_step(state)
            state = take_step(take_step(state))
    for number, expected in at_save.items():
        assert_same_bits(setup.restore(folder, number), expected)


# Which of them stay


def on_disk(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_latest_and_the_best_stay(folder):
    setup = Setup()
    with setup.open(folder, keep=2) as checkpoints:
        for step, loss in enumerate([3.0, 1.0, 2.0, 2.5, None], start=1):
            checkpoints.save(step, setup.state(seed=step), loss)
        checkpoints.wait()
        assert (checkpoints.steps, checkpoints.best, checkpoints.latest) == ([2, 4, 5], 2, 5)
    assert on_disk(folder) == ["2", "4", "5"]
    assert_same_bits(setup.restore(folder, 2), setup.state(seed=2))
    with setup.open(folder, keep=0) as checkpoints:
        assert (checkpoints.steps, checkpoints.best, checkpoints.latest) == ([2, 4, 5], 2, 5)
    # The next start of the same run still knows which was the best.
    with setup.open(folder, keep=1) as checkpoints:
        checkpoints.save(6, setup.state(), 1.5)
    assert on_disk(folder) == ["2", "6"]


def test_without_held_out_loss_the_newest_is_the_best(folder):
    setup = Setup()
    with setup.open(folder, keep=1) as checkpoints:
        assert (checkpoints.steps, checkpoints.best, checkpoints.latest) == ([], None, None)
        for step in (4, 8):
            checkpoints.save(step, setup.state(), None)
        checkpoints.wait()
        assert (checkpoints.steps, checkpoints.best, checkpoints.latest) == ([8], 8, 8)


def test_saving_a_step_twice_is_saving_it_once(folder):
    setup = Setup()
    with setup.open(folder) as checkpoints:
        checkpoints.save(4, setup.state(seed=1), 1.0)
        checkpoints.save(4, setup.state(seed=2), 0.5)
    setup.save(folder, 4, setup.state(seed=3))
    assert on_disk(folder) == ["4"]
    assert_same_bits(setup.restore(folder, 4), setup.state(seed=1))


def test_half_a_checkpoint_is_none_and_is_cleaned_away_by_who_writes(folder):
    setup = Setup()
    setup.save(folder, 4, setup.state(seed=4))
    setup.save(folder, 6, setup.state(seed=6))
    (folder / "6").rename(folder / "6.orbax-checkpoint-tmp")
    with setup.open(folder, keep=0) as checkpoints:
        assert (checkpoints.steps, checkpoints.latest) == ([4], 4)
    assert on_disk(folder) == ["4", "6.orbax-checkpoint-tmp"]  # it may be the one that a run is writing
    with setup.open(folder) as checkpoints:
        assert (checkpoints.steps, checkpoints.latest) == ([4], 4)
        checkpoints.save(8, setup.state(seed=8), None)
    assert on_disk(folder) == ["4", "8"]
    for step in (4, 8):
        assert_same_bits(setup.restore(folder, step), setup.state(seed=step))


def test_reading_leaves_the_folder_as_it_is(folder):
    with Setup().open(folder, keep=0) as checkpoints:
        assert checkpoints.latest is None
    assert not folder.exists()


# Orbax leaves its other reads unfinished when one fails: they are collected here, not in the middle of another test.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_named_with_those_that_are_whole(folder):
    setup = Setup()
    for step in (3, 5):
        setup.save(folder, step, setup.state(step))
    damaged = max((folder / "5").rglob("d/*"), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(InputError) as refusal:
        setup.restore(folder, 5)
    assert str(refusal.value).startswith(f"{folder}/5: this checkpoint cannot be read (")
    assert str(refusal.value).endswith("move it away to go on without it: it holds step 3 as well")
    assert "\n" not in str(refusal.value)
    assert_same_bits(setup.restore(folder, 3), setup.state(3))
    del refusal
    gc.collect()


def test_an_array_that_is_another_is_named_by_its_checksum(folder, monkeypatch):
    setup = Setup()
    setup.save(folder, 4, setup.state(seed=1))
    with setup.open(folder) as checkpoints:
        kept = checkpoints.kept(4)
        name = next(name for name in kept["checksums"] if "embedding" in name and "params" in name)
        kept["checksums"][name][1] ^= 1
        monkeypatch.setattr(checkpoints, "kept", lambda step: kept)
        monkeypatch.setattr(Checkpoints, "steps", [2, 4])
        name = r"\['params'\]\['embed'\]\['embedding'\]"
        problem = (
            rf"4: this checkpoint cannot be read \(the array {name} is not what was saved: its checksum is another\);"
        )
        with pytest.raises(InputError, match=problem + ".* it holds step 2 as well$"):
            checkpoints.restore(4, setup.shapes, setup.shardings)


def test_the_loss_of_another_step_and_one_that_is_gone_are_named(folder):
    setup = Setup()
    with setup.open(folder) as checkpoints:
        for step, loss in ((2, 1.0), (4, 2.0)):
            checkpoints.save(step, setup.state(step), loss)
    metrics = [folder / step / "metrics" / "metrics" for step in "24"]
    kept = [path.read_bytes() for path in metrics]
    metrics[0].write_bytes(kept[1])
    with pytest.raises(InputError, match=r"/2: this checkpoint cannot be read \(its metrics are those of step 4\);"):
        setup.open(folder, keep=0)
    metrics[0].unlink()
    with pytest.raises(InputError, match=r"/2: this checkpoint cannot be read \(the held-out loss .* is missing\);"):
        setup.open(folder, keep=0)
    metrics[0].write_bytes(kept[0])
    with setup.open(folder, keep=0) as checkpoints:
        assert checkpoints.losses == {2: 1.0, 4: 2.0}
    (metadata,) = (folder / "2").glob("_CHECKPOINT_METADATA")
    metadata.write_bytes((folder / "4" / metadata.name).read_bytes())
    with pytest.raises(InputError, match=r"/2: this checkpoint cannot be read \(its arrays are those of step 4\);"):
        setup.open(folder, keep=0)
    metadata.unlink()
    with pytest.raises(InputError, match=r"/2: this checkpoint cannot be read \(_CHECKPOINT_METADATA is missing\);"):
        setup.open(folder, keep=0)


def test_a_damaged_file_is_named_in_a_line_and_not_printed(folder, caplog):
    setup = Setup()
    with setup.open(folder) as checkpoints:
        checkpoints.save(2, setup.state(2), 1.0)
    (metadata,) = (folder / "2").glob("_CHECKPOINT_METADATA")
    metadata.write_bytes(metadata.read_bytes().replace(b"custom_metadata", b"custom\0metadata"))
    with pytest.raises(InputError, match=r"/2: this checkpoint cannot be read \(_CHECKPOINT_METADATA: Invalid control"):
        setup.open(folder, keep=0)
    assert "custom" not in caplog.text


def test_parameters_are_checked_in_the_dtype_that_they_were_saved_in(folder):
    setup = Setup()
    state = setup.state()
    setup.save(folder, 4, state)
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), setup.shapes.params)
    with setup.open(folder, keep=0) as checkpoints:
        shardings = partial(param_shardings, mesh=setup.mesh)
        params = checkpoints.restore_params(4, half, shardings)
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, expected))


# One run, one identity

IDENTITY = {"model.hidden_size": 32, "train.seed": 0, "model.rope_theta": 1e4, "list": (1, 2)}


@pytest.fixture
def fingerprint(tmp_path):
    return epath.Path(tmp_path / "run" / "fingerprint.json")


@pytest.fixture
def written(fingerprint):
    fingerprint.parent.mkdir()
    check_same_run(fingerprint, IDENTITY)
    return fingerprint


def test_what_a_run_is_is_written_down_and_found_again(written):
    assert json.loads(written.read_text()) == {**IDENTITY, "list": [1, 2]}
    assert [path.name for path in written.parent.iterdir()] == ["fingerprint.json"]
    before = written.read_text()
    check_same_run(written, dict(reversed(IDENTITY.items())))
    assert written.read_text() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"train.seed": 1, "model.hidden_size": 64}, "model.hidden_size (it was 32, now 64)"),
        ({"list": [2, 1]}, "list (it was [1, 2], now [2, 1])"),
        ({"more": "x"}, "more (it was None, now x)"),
    ],
)
def test_another_run_is_refused_by_the_first_key_that_differs(written, change, named):
    before = written.read_text()
    with pytest.raises(InputError) as refusal:
        check_same_run(written, IDENTITY | change)
    assert str(refusal.value).startswith(f"{written.parent} holds a run with another {named}; ")
    assert written.read_text() == before


WAY_ON = {"train.seed": "say so"}


def test_what_may_change_does_where_the_user_says_so(written):
    with pytest.raises(InputError, match=r"another train.seed \(it was 0, now 1\); restore it, or say so$"):
        check_same_run(written, IDENTITY | {"train.seed": 1}, WAY_ON)
    assert json.loads(written.read_text())["train.seed"] == 0
    check_same_run(written, IDENTITY | {"train.seed": 1}, {"train.seed": ""})
    assert json.loads(written.read_text())["train.seed"] == 1
    with pytest.raises(InputError, match=r"another model.hidden_size"):
        check_same_run(written, IDENTITY | {"model.hidden_size": 1, "train.seed": 2}, {"train.seed": ""})


def test_a_run_that_is_older_than_a_name_takes_it(written):
    check_same_run(written, IDENTITY | {"held out": "a"}, {"held out": "say so"})
    assert json.loads(written.read_text())["held out"] == "a"
    with pytest.raises(InputError, match=r"another held out \(it was a, now b\); restore it, or say so$"):
        check_same_run(written, IDENTITY | {"held out": "b"}, {"held out": "say so"})


def test_a_key_that_is_gone_is_a_difference(written):
    with pytest.raises(InputError, match=r"another train.seed \(it was 0, now None\)"):
        check_same_run(written, {name: value for name, value in IDENTITY.items() if name != "train.seed"})


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_identity_is_named(written, text):
    written.write_text(text)
    with pytest.raises(InputError, match=rf"^{written}: .*restore it from a copy$"):
        check_same_run(written, IDENTITY)
