"""Which files of a repository of the Hugging Face Hub a model, its config or an adapter are."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mtsft.hub import Wanted
from mtsft.interop.hf_folder import CONFIG, INDEX, SINGLE
from mtsft.interop.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mtsft.tokenizer.load import TOKENIZER_FILES

_SHARD = re.compile(r"[\w.-]+\.safetensors")


def _without(*names: str) -> Callable[[Path], Sequence[str]]:
    return lambda folder: [name for name in names if not (folder / name).exists()]


def _missing_of_model(folder: Path) -> list[str]:
    """The files of a model that a folder lacks, as far as what is there tells them."""
    try:
        shards = {*json.loads((folder / INDEX).read_bytes())["weight_map"].values()}
    except FileNotFoundError:
        shards = {SINGLE}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        shards = set()  # what reads the folder says what is wrong with it
    # Never what an index names otherwise: a pickle, a pattern, a path.
    wanted = [CONFIG, *sorted(shard for shard in shards if isinstance(shard, str) and _SHARD.fullmatch(shard))]
    return _without(*wanted)(folder)


MODEL_FILES = Wanted((CONFIG, INDEX, *TOKENIZER_FILES.files), _missing_of_model)
CONFIG_FILES = Wanted((CONFIG,), _without(CONFIG))
ADAPTER_FILES = Wanted((ADAPTER_CONFIG, ADAPTER_WEIGHTS), _without(ADAPTER_CONFIG, ADAPTER_WEIGHTS))
ADAPTER_CONFIG_FILES = Wanted((ADAPTER_CONFIG,), _without(ADAPTER_CONFIG))
