"""What the ready configs of published models share (configs/llama3_1_8b.py and its like).

A variant is MODE,MACHINE, as in --config=llama3_1_8b:lora,gpu80. "full" trains all parameters, by AdamW in float32
unless the table below says otherwise; "lora" trains low-rank adapters on a frozen base in bfloat16 (of Llama-3.1-8B on
gpu24 in int8). Machines are gpu24, gpu40, gpu48, gpu80 (a GPU of so many GB: RTX 4090 or L4, A100-40GB, L40S or A6000,
A100 or H100), h200, v5e-8, v5e-16 (8 and 16 chips of 16 GB) and v5p-8 (4 chips of 95 GB). v5e-16 is several hosts:
start it as configs/pod.py, with the model, too, where every host reads it (HF_HOME).

The model is named as the Hugging Face Hub has it, and found in its local cache or downloaded; one that lies elsewhere
is named by model.init_from=FOLDER.

A batch is 32 rows of 4,096 slots, 131,072 tokens, on every machine; a machine chooses how many rows a device computes
at a time, which changes nothing that is learned: with another train.batch_size there are more or fewer parts, and
each is as large as before. Several GPUs of a machine are used by parallel.mesh, such as fsdp=4. One dialogue in fifty
is held out, by its content; of a dialogue that is too long the last turns are kept.

The docstring of each config has the memory to expect, GiB of each chip. State is parameters and moments, by their
shapes. All is what the compiler allots to the whole step (memory_analysis by benchmarks/memory.py, at the compiler's
least effort: allow a tenth more). Those of GPUs are compiled for one TPU v5p chip, whose compiler allots memory
otherwise than a GPU's. By hand it is reckoned so, for one GPU (tests/test_configs.py compares): what is frozen in
bfloat16, 2 bytes a parameter; what is trained, 4 bytes a parameter, 12 with AdamW's moments, and 8 for two gradients,
of a part and of the batch so far; 2 bytes for each row that is computed at a time x 4,096 slots x layers x width, the
inputs that are kept for the backward pass (on gpu80 and h200 mostly also what attention and the matrices of a layer
give, but for the last: model.remat), and 6 bytes for each slot that meets the vocabulary at a time (512 of a row of
4,096, 1,024 of two: objective.chunk) x vocabulary; a quarter more for one layer's own activations, and 2 GiB. Of these
machines an H100 has run steps: a LoRA of Llama-3.1-8B, two rows at a time, took 40.8 GiB where 39.1 are reckoned. On a
GPU JAX takes three quarters of the memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise, such as 0.95.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtsft.config import default
from mtsft.errors import InputError, one_line

BATCH_SIZE = 32  # rows
# Chips of a machine, over which parameters and rows are cut (fsdp).
CHIPS = {"gpu24": 1, "gpu40": 1, "gpu48": 1, "gpu80": 1, "h200": 1, "v5e-8": 8, "v5e-16": 16, "v5p-8": 4}

# Where what a layer's matrices give can be kept: on an H100 a step of a LoRA of 8B takes a seventh less then.
_ROOMY = ("gpu80", "h200")

Keys = Mapping[str, Any]
Machines = Mapping[str, Keys | str]  # the keys of each; in place of keys, why there are none
Variants = Mapping[str, Machines]  # by mode


def machines(*, rows: int) -> dict[str, Keys | str]:
    """The keys of every machine where a chip computes so many rows of a batch at a time."""
    own = {name: {"parallel.mesh": f"fsdp={chips}"} if chips > 1 else {} for name, chips in CHIPS.items()}
    own |= {name: {"model.remat": "dots_no_batch"} for name in _ROOMY}
    return {name: own[name] | {"train.rows_per_device": rows} for name in CHIPS}


def _both(*, rows: int, full: Machines | None = None, lora: Machines | None = None) -> Variants:
    """The variants of a model: rows of a batch that a chip computes at a time; other keys, by machine."""
    return {"full": machines(rows=rows) | dict(full or {}), "lora": machines(rows=rows) | dict(lora or {})}


def _refused(reason: str, *machines: str) -> Machines:
    return dict.fromkeys(machines, reason)


def _too_large(gib: int, *machines: str) -> str:
    instead = ", ".join(f"full,{machine}" for machine in machines)
    return f"its step takes {gib} GiB, even without AdamW's moments; use {instead} or lora,gpu24"


def same_step(machines: Machines, machine: str) -> str:
    """The machine whose figures are those of this one: gpu80, or the first, of those that run the very same step."""
    alike = [name for name, keys in machines.items() if CHIPS[name] == CHIPS[machine] and keys == machines[machine]]
    return "gpu80" if "gpu80" in alike else alike[0]


_ADAFACTOR = {"train.optimizer": "adafactor"}  # where AdamW's moments do not fit
_GPU_ADAFACTOR = {"train.rows_per_device": 1} | _ADAFACTOR
_VOCABULARY_CUT = {"parallel.mesh": "fsdp=4,tensor=2", "train.rows_per_device": 1}
_LARGE = ("h200", "v5p-8")
_7B = {"h200": _GPU_ADAFACTOR, "v5e-8": _VOCABULARY_CUT | _ADAFACTOR}
_4B = {"gpu80": _GPU_ADAFACTOR, "h200": _GPU_ADAFACTOR, "v5e-8": _VOCABULARY_CUT}
VARIANTS: Mapping[str, Variants] = {
    "qwen3_0_6b": _both(rows=2),
    "gemma3_1b": _both(rows=2, full={"gpu24": {"train.rows_per_device": 1}}),
    "llama3_2_1b": _both(rows=2, full={"gpu24": _GPU_ADAFACTOR}),
    "qwen2_5_1_5b": _both(rows=2, full={"gpu24": _GPU_ADAFACTOR}),
    "llama3_2_3b": _both(
        rows=1,
        full={"gpu48": _GPU_ADAFACTOR, "gpu80": {"train.rows_per_device": 1}}
        | _refused(_too_large(38, "gpu48", "gpu80"), "gpu24", "gpu40"),
    ),
    "gemma3_4b": _both(rows=1, full=_4B | _refused(_too_large(48, "gpu80", *_LARGE), "gpu24", "gpu40", "gpu48")),
    "mistral_7b": _both(rows=1, full=_7B | _refused(_too_large(86, *_LARGE), "gpu24", "gpu40", "gpu48", "gpu80")),
    "llama3_1_8b": _both(
        rows=1,
        full=_7B | _refused(_too_large(93, *_LARGE), "gpu24", "gpu40", "gpu48", "gpu80"),
        lora={"gpu24": {"train.rows_per_device": 1, "lora.quantize": "int8"}},  # pip install 'mtsft[quantized]'
    ),
}


def choose(variant: str, variants: Variants) -> tuple[str, dict[str, Any]]:
    """The mode of a variant, and the keys that this mode takes on this machine.

    Args:
        variant: MODE,MACHINE, such as "lora,gpu80".
        variants: of the model.

    Raises:
        InputError: it is not one of the variants, or has no keys.
    """
    mode, _, machine = (part.strip() for part in variant.partition(","))
    keys = variants.get(mode, {}).get(machine)
    if keys is None:
        names = dict.fromkeys(name for each in variants.values() for name in each)
        raise InputError(
            f"config variant {one_line(variant, 50)!r}: write MODE,MACHINE after the config's name, "
            f"with one of {', '.join(variants)} and one of {', '.join(names)}"
        )
    if isinstance(keys, str):
        raise InputError(f"config variant {mode},{machine}: {keys}")
    return mode, dict(keys)


def fine_tune(
    name: str, variant: str, init_from: str, *, learning_rate: float, lora_learning_rate: float
) -> ConfigDict:
    """The config that trains a published model on dialogues.jsonl, two epochs in rows of 4,096 slots.

    Every key that is not set here is the default of mtsft/config.py.

    Args:
        name: of the model in VARIANTS, which is the name of its config.
        variant: MODE,MACHINE, such as "lora,gpu80".
        init_from: the model's name on the Hugging Face Hub.
        learning_rate: of full training, at its peak.
        lora_learning_rate: of adapters, at its peak.

    Raises:
        InputError: there is no such variant.
    """
    mode, keys = choose(variant, VARIANTS[name])
    config = default()

    config.data.train = "dialogues.jsonl"
    config.data.eval_fraction = 0.02
    config.data.sequence_length = 4096
    config.data.over_length = "keep_last"

    config.model.init_from = init_from
    config.model.dtype = "bfloat16"
    config.model.remat = "full"

    config.train.epochs = 2.0
    config.train.batch_size = BATCH_SIZE
    config.train.learning_rate = learning_rate
    config.train.weight_decay = 0.0

    if mode == "lora":
        config.model.param_dtype = "bfloat16"
        config.lora.rank = 16
        config.lora.alpha = 32.0
        config.train.learning_rate = lora_learning_rate

    config.update_from_flattened_dict(keys)
    return config
