from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from support import small_model

from mtsft.errors import InputError
from mtsft.runs.initial_params import initial_params
from mtsft.training.optimizer import build_optimizer
from mtsft.training.sharding import (
    BATCH,
    RULES,
    check_batch_size,
    check_rules,
    count_microbatches,
    make_mesh,
    param_shardings,
    param_specs,
    put_rows,
    rows_of_this_process,
)
from mtsft.training.state import create_state, new_state, state_shardings


@pytest.mark.parametrize(
    ("spec", "shape"),
    [("", (8, 1, 1)), ("data=2,fsdp=4,tensor=1", (2, 4, 1)), ("fsdp=-1", (1, 8, 1)), ("tensor=2,data=-1", (4, 1, 2))],
)
def test_mesh_spec(spec, shape):
    assert tuple(make_mesh(spec).shape.values()) == shape


@pytest.mark.parametrize(
    "spec", ["data=3", "data=2,fsdp=2", "rows=8", "data=eight", "data=-1,fsdp=-1", "data=0", "data"]
)
def test_impossible_mesh_is_named(spec):
    with pytest.raises(InputError, match="parallel.mesh='" + spec):
        make_mesh(spec)


@pytest.mark.parametrize("scan", [True, False])
def test_every_parameter_has_the_rule_of_its_name(scan):
    specs = param_specs(jax.eval_shape(small_model(scan_layers=scan).init, jax.random.key(0)))
    layer = specs["layers"] if scan else specs["layers"][1]
    assert specs["embed"]["embedding"] == P("tensor", "fsdp")
    assert layer["attention"]["output"]["kernel"] == (P(None, "tensor", "fsdp") if scan else P("tensor", "fsdp"))
    assert layer["mlp_norm"]["scale"] in (P(), P(None))


def test_a_parameter_without_a_rule_and_a_rule_without_a_parameter_are_errors():
    shapes = jax.eval_shape(small_model().init, jax.random.key(0))
    with pytest.raises(ValueError, match="no sharding rule fits the parameter embed/embedding"):
        param_specs(shapes, RULES[1:])
    check_rules(shapes)
    with pytest.raises(ValueError, match="rules that fit no parameter: adapter"):
        check_rules(shapes, ("mlp/up/kernel$", "adapter"))


def test_a_size_that_the_mesh_does_not_divide_is_named():
    shapes = jax.eval_shape(small_model(hidden_size=36).init, jax.random.key(0))
    with pytest.raises(InputError, match=r"embed/embedding has a size of 36, which fsdp=8 does not divide"):
        param_shardings(shapes, make_mesh("fsdp=8"))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_is_born_sharded_moments_beside_their_parameters(name):
    model, mesh = small_model(), make_mesh("data=2,fsdp=4")
    optimizer = build_optimizer(name, clip_norm=1.0, weight_decay=0.1, b1=0.9, b2=0.95, eps=1e-8)
    shapes = jax.eval_shape(lambda key: new_state(model.init(key), optimizer), jax.random.key(0))
    shardings = state_shardings(shapes, optimizer, mesh)
    state = create_state(jax.device_put(model.init(jax.random.key(0)), shardings.params), optimizer, shardings)
    kernel = state.params["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 32 // 4, 64)
    of_kernel = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if "'up'" in jax.tree_util.keystr(path)
    ]
    assert len(of_kernel) == (2 if name == "adamw" else 1)
    assert all(moment.sharding == kernel.sharding for moment in of_kernel)


def test_fresh_parameters_do_not_depend_on_the_mesh():
    model = small_model()
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    drawn = [
        initial_params(shapes, model, None, seed=5, shardings_of=partial(param_shardings, mesh=make_mesh(mesh)))
        for mesh in ("data=8", "data=2,fsdp=2,tensor=2")
    ]
    for a, b in zip(*map(jax.tree.leaves, drawn)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("mesh", ["data=8", "data=2,fsdp=4", "data=2,tensor=4"])
def test_rows_arrive_where_they_belong(mesh):
    sharding = NamedSharding(make_mesh(mesh), BATCH)
    rows = rows_of_this_process(sharding, 16)
    assert rows == list(range(16))
    batch = put_rows({"x": np.arange(16 * 3).reshape(16, 3)}, rows, sharding, 16)
    np.testing.assert_array_equal(batch["x"], np.arange(48).reshape(16, 3))
    assert batch["x"].sharding == sharding


def test_batch_size_must_divide():
    check_batch_size("train.batch_size", 32, num_shards=8, microbatches=4)
    with pytest.raises(
        InputError, match=r"train.batch_size=20 does not divide over 8 devices .* use train.batch_size=16 or 32$"
    ):
        check_batch_size("train.batch_size", 20, num_shards=8, microbatches=2)
    with pytest.raises(
        InputError, match=r"^train.batch_size=5 does not divide over 8 devices; use train.batch_size=8$"
    ):
        check_batch_size("train.batch_size", 5, num_shards=8)
    with pytest.raises(
        InputError, match=r"3 micro-batches; use train.batch_size=24 or 48, or train.microbatches=2 or 4$"
    ):
        check_batch_size("train.batch_size", 32, num_shards=8, microbatches=3)
    with pytest.raises(InputError, match=r"^eval.batch_size=0: must be at least 1$"):
        check_batch_size("eval.batch_size", 0, num_shards=8)


@pytest.mark.parametrize(
    ("batch_size", "shards", "rows_per_device", "parts"),
    [
        (32, 1, 2, 16), (64, 1, 2, 32), (32, 8, 2, 2), (64, 8, 2, 4), (32, 1, 0, 1), (8, 8, 2, 1), (32, 1, 64, 1),
        (40, 8, 2, 5),  # five rows each, which two do not divide: one by one
        (36, 1, 5, 9),  # four at a time
    ],
)  # fmt: skip
def test_micro_batches_follow_the_batch(batch_size, shards, rows_per_device, parts):
    assert count_microbatches(batch_size, shards, 0, rows_per_device) == parts
    assert batch_size // shards // parts <= (rows_per_device or batch_size)
    assert count_microbatches(batch_size, shards, 1, rows_per_device) == 1  # train.microbatches goes before


def test_micro_batches_of_unequal_rows_are_refused():
    with pytest.raises(
        InputError, match=r"^train.batch_size=12 does not divide over 8 devices; use train.batch_size=8 or"
    ):
        count_microbatches(12, 8, 0, 2)


def test_transfers_are_only_those_asked_for():
    sharding = NamedSharding(make_mesh(""), BATCH)
    with jax.transfer_guard("disallow"):
        put_rows(np.zeros((8, 2)), range(8), sharding, 8)
        with pytest.raises(Exception, match="Disallowed host-to-device"):
            jnp.zeros(3) + np.ones(3)
