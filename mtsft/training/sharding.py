"""How arrays are cut over devices: a mesh of data, fsdp and tensor axes, and ordered rules from names to axes."""

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtsft.errors import InputError
from mtsft.model.parameters import VOCABULARY_AXES, leading_axes, name_of, names

AXES = ("data", "fsdp", "tensor")

# The first rule whose pattern is found in a parameter's name says how the axes of its matrix or vector are cut.
RULES: tuple[tuple[str, P], ...] = (
    (r"embed/embedding$", P("tensor", "fsdp")),
    (r"attention/(query|key|value)/kernel(_int8|_nf4)?$", P("fsdp", "tensor")),
    (r"attention/output/kernel(_int8|_nf4)?$", P("tensor", "fsdp")),
    (r"mlp/(experts/)?(gate|up)/kernel(_int8|_nf4)?$", P("fsdp", "tensor")),
    (r"mlp/(experts/)?down/kernel(_int8|_nf4)?$", P("tensor", "fsdp")),
    (r"head/kernel$", P("fsdp", "tensor")),
    (r"norm/scale$", P()),
    (r"(embed|head)/token_rows$", P(None, "fsdp")),
    # A scale of int8 is of a whole column, one of nf4 of a tile of a column.
    (r"(query|key|value|gate|up)/scale_int8$", P(None, "tensor")),
    (r"(output|down)/scale_int8$", P(None, "fsdp")),
    (r"(query|key|value|gate|up)/scale_nf4$", P("fsdp", "tensor")),
    (r"(output|down)/scale_nf4$", P("tensor", "fsdp")),
    # An adapter is cut as the matrix beside it, but for its rank.
    (r"(query|key|value|gate|up)/lora_a$", P("fsdp", None)),
    (r"(query|key|value|gate|up)/lora_b$", P(None, "tensor")),
    (r"(output|down)/lora_a$", P("tensor", None)),
    (r"(output|down)/lora_b$", P(None, "fsdp")),
    (r"(query|key|value|gate|up)/bias$", P("tensor")),
    (r"(output|down)/bias$", P("fsdp")),
)
# How the axes before those are cut.
LEADING: dict[str, str | None] = {"layers": None, "experts": None}
# The rules that fit a parameter of every model.
_ALWAYS = tuple(pattern for pattern, _ in RULES[:5])

BATCH = P(("data", "fsdp"))  # rows of a batch are cut over both axes; every tensor shard reads the same rows


def make_mesh(spec: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that `spec` describes, such as "data=2,fsdp=4,tensor=1"; "" puts all devices on data.

    Args:
        spec: sizes of axes; one may be -1, for whatever devices are left.
        devices: of the mesh; None for all there are.

    Raises:
        InputError: the axes do not make up the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict.fromkeys(AXES, 1)
    for part in (spec or "data=-1").split(","):
        name, _, value = part.strip().partition("=")
        if name not in AXES or not re.fullmatch(r"-1|[1-9]\d*", value):
            raise InputError(f'parallel.mesh={spec!r}: write axes as in "data=2,fsdp=4,tensor=1" (or -1 for the rest)')
        sizes[name] = int(value)
    open_axes = [name for name, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(open_axes) == 1 and len(devices) % fixed == 0:
        sizes[open_axes[0]] = len(devices) // fixed
    elif open_axes or fixed != len(devices):
        raise InputError(
            f"parallel.mesh={spec!r} makes {fixed} devices, and there are {len(devices)}; "
            "give axes whose product is that, or -1 for one of them"
        )
    # Auto axes: the compiler shards activations; the rules above shard parameters and batches.
    axis_types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, devices=devices, axis_types=axis_types)


def param_specs(params, rules: Sequence[tuple[str, P]] = RULES, leading: Mapping[str, str | None] = LEADING):
    """The PartitionSpec of every parameter.

    Args:
        params: a tree of arrays or shapes.
        rules: as RULES.
        leading: as LEADING.

    Raises:
        ValueError: for a parameter that no rule fits.
    """

    def spec(path, leaf):
        name = name_of(path)
        axes = next((axes for pattern, axes in rules if re.search(pattern, name)), None)
        if axes is None:
            raise ValueError(f"no sharding rule fits the parameter {name}")
        return P(*(leading[axis] for axis in leading_axes(path)), *axes)

    return jax.tree_util.tree_map_with_path(spec, params)


def check_rules(params, patterns: Sequence[str] = _ALWAYS) -> None:
    """Raises ValueError for the pattern of a rule that fits no parameter of a whole model."""
    all_names = names(params)
    if unused := [pattern for pattern in patterns if not any(re.search(pattern, name) for name in all_names)]:
        raise ValueError(f"sharding rules that fit no parameter: {', '.join(unused)}")


def param_shardings(
    params,
    mesh: Mesh,
    rules: Sequence[tuple[str, P]] = RULES,
    leading: Mapping[str, str | None] = LEADING,
    strict: bool = True,
):
    """The NamedSharding of every parameter, by `param_specs`.

    Args:
        params: a tree of arrays or shapes.
        mesh: whose axes the rules name.
        rules: as RULES.
        leading: as LEADING.
        strict: whether a size that its axis does not divide is an error; else it is left whole. A vocabulary is in any
            case: a model has padding where its own would not be divided, see model/vocabulary.py.

    Raises:
        InputError: an axis does not divide a size.
    """

    def sharding(path, leaf, spec):
        axes = list(spec)
        for i, (size, axis) in enumerate(zip(leaf.shape, spec)):
            if axis is None or size % mesh.shape[axis] == 0:
                continue
            if strict and VOCABULARY_AXES.get(tuple(str(getattr(entry, "key", entry)) for entry in path)) != i:
                raise InputError(
                    f"parallel.mesh: {name_of(path)} has a size of {size}, which {axis}={mesh.shape[axis]} does not "
                    f"divide; choose another {axis} or model size"
                )
            axes[i] = None
        return NamedSharding(mesh, P(*axes))

    return jax.tree_util.tree_map_with_path(sharding, params, param_specs(params, rules, leading))


def check_batch_size(key: str, batch_size: int, num_shards: int, microbatches: int = 1) -> None:
    """Raises InputError, naming the config key, unless all devices get equally many rows of every micro-batch."""
    if batch_size < 1:
        raise InputError(f"{key}={batch_size}: must be at least 1")
    unit = num_shards * microbatches
    if batch_size % unit == 0:
        return
    sizes = [size for size in (batch_size // unit * unit, -(-batch_size // unit) * unit) if size]
    parts = f" times {microbatches} micro-batches" if microbatches > 1 else ""
    remedy = f"use {key}={' or '.join(map(str, sizes))}"
    if batch_size % num_shards == 0:
        rows = batch_size // num_shards
        counts = [n for n in range(1, rows + 1) if rows % n == 0]
        near = sorted(sorted(counts, key=lambda n: abs(n - microbatches))[:2])
        remedy += f", or train.microbatches={' or '.join(map(str, near))}"
    raise InputError(f"{key}={batch_size} does not divide over {num_shards} devices{parts}; {remedy}")


def count_microbatches(batch_size: int, num_shards: int, microbatches: int, rows_per_device: int) -> int:
    """Parts that a batch of training is computed in.

    Args:
        batch_size: rows, over all devices.
        num_shards: devices that have rows of their own.
        microbatches: parts, as the config says; 0 for as few as rows_per_device allows.
        rows_per_device: rows of a part that a device computes, at most; 0 for any number.

    Raises:
        InputError: devices would get unequal numbers of rows.
    """
    check_batch_size("train.batch_size", batch_size, num_shards, microbatches or 1)
    if microbatches or not rows_per_device:
        return microbatches or 1
    rows = batch_size // num_shards
    return next(parts for parts in range(1, rows + 1) if rows % parts == 0 and rows // parts <= rows_per_device)


def rows_of_this_process(sharding: NamedSharding, batch_size: int) -> list[int]:
    """Which rows of a global batch this process's devices hold, ascending."""
    indices = sharding.addressable_devices_indices_map((batch_size, 1)).values()
    return sorted({row for rows, _ in indices for row in range(*rows.indices(batch_size))})


def put_rows(batch, rows: Sequence[int], sharding: NamedSharding, batch_size: int):
    """A tree of arrays holding this process's `rows` as global arrays of `batch_size` rows."""
    index_of = {row: i for i, row in enumerate(rows)}

    def put(local: np.ndarray) -> jax.Array:
        def shard(index):
            wanted = range(*index[0].indices(batch_size))
            return local[index_of[wanted[0]] : index_of[wanted[0]] + len(wanted)]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, shard)

    with jax.transfer_guard_host_to_device("allow"):  # the one transfer of a training loop
        return jax.tree.map(put, batch)
