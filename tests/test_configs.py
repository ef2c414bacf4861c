"""The configs of published models: every variant is a config that its machine's mesh can carry."""

import ast
import json
import re
from pathlib import Path

import jax
import pytest
from published_configs import PUBLISHED

from mtsft import presets
from mtsft.config import default, validate
from mtsft.config_files import config_names, find_config, load_config
from mtsft.errors import InputError
from mtsft.hub import hub_name
from mtsft.interop.config_json import architecture_fields
from mtsft.model.parameters import names, split
from mtsft.runs.build_model import model_of
from mtsft.training.freeze import trained_names
from mtsft.training.learning_rate import SCHEDULES
from mtsft.training.optimizer import OPTIMIZERS
from mtsft.training.sharding import check_rules, count_microbatches, param_shardings
from mtsft.training.slots import chunk_of

ROOT = Path(__file__).parents[1]
MEMORY = json.loads((ROOT / "benchmarks" / "memory.json").read_text())
# GiB that a program may fill of a chip (of a GPU, all but a twentieth), and chips.
GPUS = {"gpu24": (21.4, 1), "gpu40": (37.4, 1), "gpu48": (42.5, 1), "gpu80": (75.0, 1), "h200": (132.0, 1)}
MACHINES = GPUS | {"v5e-8": (15.75, 8), "v5e-16": (15.75, 16), "v5p-8": (95.0, 4)}
CHIPS = presets.CHIPS
READY = tuple(presets.VARIANTS)
VARIANTS = [
    (name, mode, machine)
    for name, modes in presets.VARIANTS.items()
    for mode, machines in modes.items()
    for machine, keys in machines.items()
    if not isinstance(keys, str)
]


def fields_of(name):
    return architecture_fields(json.loads((ROOT / "benchmarks" / "published" / f"{name}.json").read_text()), name)[1]


def mesh_of(spec, num_devices):
    """What make_mesh makes of a spec, of no devices in particular."""
    sizes = dict(part.split("=") for part in spec.split(",")) if spec else {"data": num_devices}
    sizes = {axis: int(sizes.get(axis, 1)) for axis in ("data", "fsdp", "tensor")}
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
    assert mesh.size == num_devices
    return mesh


@pytest.fixture(scope="module")
def models():
    """The model of a config, and the shapes of its parameters, made once for all machines."""
    made = {}

    def model_and_shapes(name, config):
        for key, value in fields_of(name).items():
            config.model[key] = value
        model = model_of(config, 0)
        key = (model.arch, model.lora)
        if key not in made:
            made[key] = jax.eval_shape(model.init, jax.random.key(0))
        return model, made[key]

    return model_and_shapes


def test_every_published_model_has_a_config():
    published = {path.stem for path in (ROOT / "benchmarks" / "published").glob("*.json")}
    assert published == {*READY} == {*config_names()} - {"from_scratch", "pod", "quickstart"}


@pytest.mark.parametrize("name", READY)
def test_every_mode_and_machine_is_answered(name):
    modes = presets.VARIANTS[name]
    assert {mode: set(machines) for mode, machines in modes.items()} == {"full": {*MACHINES}, "lora": {*MACHINES}}
    assert load_config(name) == load_config(f"{name}:lora,gpu80")
    for mode, machines in modes.items():
        for machine, keys in machines.items():
            if isinstance(keys, str):
                with pytest.raises(InputError, match=re.escape(keys)):
                    load_config(f"{name}:{mode},{machine}")


@pytest.mark.parametrize(("name", "mode", "machine"), VARIANTS)
def test_variant_fits_its_machine(name, mode, machine, models):
    config = load_config(f"{name}:{mode},{machine}")
    validate(config)
    assert config.train.optimizer in OPTIMIZERS
    assert config.train.schedule in SCHEDULES
    assert bool(config.lora.rank) == (mode == "lora")
    mesh = mesh_of(config.parallel.mesh, MACHINES[machine][1])
    model, shapes = models(name, config)
    check_rules(shapes)
    trained, frozen = split(shapes, trained_names(model.lora, config.train.freeze, names(shapes)))
    param_shardings(trained, mesh), param_shardings(frozen, mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    assert config.train.microbatches == 0
    for batch_size in (config.train.batch_size, 2 * config.train.batch_size):
        parts = count_microbatches(batch_size, shards, 0, config.train.rows_per_device)
        assert batch_size == parts * shards * config.train.rows_per_device


@pytest.mark.parametrize("name", READY)
def test_machines_differ_in_nothing_that_is_learned(name):
    runtime = {"parallel.mesh", "train.rows_per_device", "train.optimizer", "model.remat"}
    others = {
        (mode, machine, key)
        for mode, machines in presets.VARIANTS[name].items()
        for machine, keys in machines.items()
        if not isinstance(keys, str)
        for key in keys
        if key not in runtime
    }
    assert others == ({("lora", "gpu24", "lora.quantize")} if name == "llama3_1_8b" else set())


@pytest.mark.parametrize("name", READY)
def test_docstring_is_the_record(name):
    doc = ast.get_docstring(ast.parse(find_config(name).read_text()))
    commands = " ".join(line.strip() for line in doc.splitlines() if line.startswith("    ")).split()
    assert f"--config={name}:lora,gpu80" in commands
    assert f"--workdir=runs/{name}" in commands
    hub = hub_name(load_config(name).model.init_from)
    assert hub == (load_config(name).model.init_from, "")
    assert "mtsft/presets.py" in doc
    assert max(map(len, doc.splitlines())) <= 120
    rows = {row[0]: row[1:] for line in doc.splitlines() if (row := line.split()) and row[0] in MACHINES}
    assert set(rows) == set(MACHINES)
    for machine, cells in rows.items():
        figures = [cell for cell in " ".join(cells).replace("refused", "refused refused").split() if cell != "/"]
        for mode, state, total in zip(("full", "lora"), figures[::2], figures[1::2], strict=True):
            keys = presets.VARIANTS[name][mode][machine]
            measured_as = presets.same_step(presets.VARIANTS[name][mode], machine)
            if isinstance(keys, str):
                assert state == total == "refused"
                continue
            measured = MEMORY[f"{name}:{mode},{measured_as}"]
            assert measured["keys"] == keys, "measure again: python benchmarks/memory.py --save, then --tables"
            assert (state, total) == (f"{measured['state']:.1f}", f"{measured['all']:.1f}")
            assert measured["fits"]
            assert measured["all"] < 0.92 * MACHINES[machine][0]


@pytest.mark.parametrize("variant", [variant for variant in MEMORY if CHIPS[variant.partition(",")[2]] == 1])
def test_memory_is_what_can_be_reckoned(variant, models):
    """The rule of mtsft/presets.py: a quarter more for what a layer needs, and 2 GiB for what else there is."""
    name, _, mode_and_machine = variant.partition(":")
    config = load_config(f"{name}:{mode_and_machine}")
    model, shapes = models(name, config)
    trained, frozen = split(shapes, trained_names(model.lora, config.train.freeze, names(shapes)))
    count = sum(leaf.size for leaf in jax.tree.leaves(trained))
    moments = {"adamw": 8, "adafactor": 0}[config.train.optimizer]
    state = (4 + moments) * count + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(frozen))
    assert state / 2**30 == pytest.approx(MEMORY[variant]["state"], rel=0.01, abs=0.01)
    arch = model.arch
    D, heads = arch.hidden_size, arch.head_dim * (arch.num_attention_heads + arch.num_key_value_heads)
    width = {"full": D, "dots_no_batch": 2 * D + 2 * heads + 2 * arch.intermediate_size}[arch.remat]
    kept = 2 * config.train.rows_per_device * 4096 * width * arch.num_hidden_layers
    logits = 6 * chunk_of(config.train.rows_per_device * 4096) * arch.vocab_size
    reckoned = (state + 8 * count + kept + logits) / 2**30
    assert 0.95 * reckoned < MEMORY[variant]["all"] < 1.25 * reckoned + 2


def test_sizes_are_those_of_the_published_models():
    published = [architecture_fields(config, "")[1] for config in PUBLISHED.values()]
    alone = {name for name in READY if fields_of(name) not in published}
    assert alone == {"llama3_2_3b"}


def test_machines_share_a_batch():
    assert presets.machines(rows=2) == {
        **{key: {"train.rows_per_device": 2} for key in ("gpu24", "gpu40", "gpu48")},
        **{key: {"train.rows_per_device": 2, "model.remat": "dots_no_batch"} for key in ("gpu80", "h200")},
        "v5e-8": {"parallel.mesh": "fsdp=8", "train.rows_per_device": 2},
        "v5e-16": {"parallel.mesh": "fsdp=16", "train.rows_per_device": 2},
        "v5p-8": {"parallel.mesh": "fsdp=4", "train.rows_per_device": 2},
    }


def test_choose():
    variants = {"full": {"gpu80": "does not fit; use lora"}, "lora": {"gpu80": {"train.rows_per_device": 2}}}
    assert presets.choose("lora,gpu80", variants) == ("lora", {"train.rows_per_device": 2})
    assert presets.choose(" lora, gpu80", variants)[0] == "lora"
    for wrong in ("", "lora", "gpu80", "gpu80,lora", "lora,gpu90", "half,gpu80", "lora,gpu80,more", "a\nb,\x1b[0m"):
        with pytest.raises(InputError, match="one of full, lora and one of gpu80") as error:
            presets.choose(wrong, variants)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"^config variant full,gpu80: does not fit; use lora$"):
        presets.choose("full,gpu80", variants)


def test_variants_name_known_keys():
    defaults = default()
    for name, mode, machine in VARIANTS:
        for key in presets.VARIANTS[name][mode][machine]:
            group, name_in_group = key.split(".")
            assert name_in_group in defaults[group]


def test_every_config_is_a_record():
    for name, path in config_names().items():
        doc = ast.get_docstring(ast.parse(path.read_text()))
        assert "\nExpected" in doc
        assert re.search(rf"\n    .*--config={name}\b", doc)
        assert len(path.read_text().splitlines()) <= 60
