"""The adapter_config.json of a PEFT folder: which function its adapters are."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtsft.errors import InputError, one_line
from mtsft.files import read_json_file
from mtsft.interop.peft_format import ADAPTER_CONFIG, last, unsupported
from mtsft.model.lora import LoRA

# Options under which an adapter is another function than B A x.
_UNSUPPORTED = (
    "use_dora use_qalora use_bdlora lora_bias target_parameters layer_replication alora_invocation_tokens arrow_config "
    "kasa_config velora_config monteclora_config fan_in_fan_out"
).split()
# Values of init_lora_weights that leave the base model as it is; others change it.
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
_TABLES = {"embed_tokens": "embed", "lm_head": "head"}


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter_config.json says.

    Attributes:
        file: its path.
        lora: rank, alpha and dropout.
        ranks: of fused modules whose rank is a sum of ranks, by the modules' last names.
        token_ids: of the rows that are trained alone, in the file's order, by our name of their table.
        ties: whether what is trained of an embedding is trained of a head that is tied to it.
        modules_to_save: ends of the names of modules that are trained whole.
    """

    file: Path
    lora: LoRA
    ranks: Mapping[str, int]
    token_ids: Mapping[str, tuple[int, ...]]
    ties: bool
    modules_to_save: tuple[str, ...]


def read_adapter_config(folder: Path, modules: Mapping[str, Collection]) -> AdapterConfig:
    """The adapter_config.json of a folder.

    Args:
        folder: the PEFT folder.
        modules: the kernels that each linear module of the base model is made of, by the module's name.

    Raises:
        InputError: there is none, or it describes adapters that are another function than those here.
    """
    file = folder / ADAPTER_CONFIG
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one that PEFT's save_pretrained wrote")
    if not file.exists():
        raise InputError(f"{folder}: holds no {ADAPTER_CONFIG}; give a folder that PEFT's save_pretrained wrote")
    config = read_json_file(file)[1]
    if config.get("peft_type") != "LORA":
        raise InputError(f"{file}: peft_type is {one_line(repr(config.get('peft_type')), 60)}; only LORA is supported")
    for key in _UNSUPPORTED:
        if config.get(key):
            raise unsupported(file, key)
    if config.get("bias") not in (None, "none"):
        raise InputError(f"{file}: bias is {one_line(repr(config['bias']), 60)}; only 'none' is supported")
    if config.get("init_lora_weights") not in _INITS:
        raise InputError(
            f"{file}: init_lora_weights is {one_line(repr(config['init_lora_weights']), 60)}, which changes the base "
            "model; convert the adapter to a plain one in PEFT"
        )
    rank, alpha, dropout = config.get("r", 8), config.get("lora_alpha", 8), config.get("lora_dropout", 0.0)
    fits = type(rank) is int and rank > 0 and all(type(x) in (int, float) and x >= 0 for x in (alpha, dropout))
    if not fits or dropout >= 1:
        raise InputError(f"{file}: r, lora_alpha and lora_dropout must be numbers that make an adapter; fetch it anew")
    ranks = _ranks(file, config, rank, alpha, modules)
    # Rank-stabilised adapters are scaled by alpha / sqrt(r): Kalajdzievski 2023, arXiv:2312.03732.
    alpha *= math.sqrt(rank) if config.get("use_rslora") else 1
    lora = LoRA(rank=rank, alpha=float(alpha), dropout=float(dropout))
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise InputError(f"{file}: modules_to_save must be a list of names; fetch it anew")
    ties = bool(config.get("ensure_weight_tying"))
    return AdapterConfig(file, lora, ranks, _token_ids(file, config), ties, tuple(saved))


def _ranks(
    file: Path, config: Mapping[str, Any], rank: int, alpha: float, modules: Mapping[str, Collection]
) -> dict[str, int]:
    """The ranks of fused modules whose rank is a sum of ranks, by the modules' last names.

    Args:
        file: the adapter_config.json, for errors.
        config: its JSON.
        rank: of all other adapters.
        alpha: of all other adapters.
        modules: as those of `read_adapter_config`.

    Raises:
        InputError: a rank is another one, or an alpha does not scale every part as the other adapters are.
    """
    ranks, alphas = (config.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
    if not ranks and not alphas:
        return {}
    counts = {last(module): len(parts) for module, parts in modules.items()}
    fits = isinstance(ranks, dict) and isinstance(alphas, dict) and {*ranks} == {*alphas}
    if not fits or config.get("use_rslora"):
        raise unsupported(file, "rank_pattern" if ranks else "alpha_pattern")
    for module, of_all in ranks.items():
        sums = [rank * count for count in range(2, counts.get(module, 1) + 1)]
        if of_all not in sums or alphas[module] != alpha * of_all / rank:
            raise unsupported(file, "rank_pattern")
    return ranks


def _token_ids(file: Path, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """trainable_token_indices: a list is of the embedding."""
    given = config.get("trainable_token_indices") or {}
    given = {"embed_tokens": given} if isinstance(given, list) else given
    tables: dict[str, tuple[int, ...]] = {}
    for module, ids in given.items() if isinstance(given, dict) else [("", None)]:
        are_ids = isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids) and len({*ids}) == len(ids)
        if not are_ids or last(module) not in _TABLES:
            raise InputError(
                f"{file}: trainable_token_indices must list ids of tokens, each once, of the modules "
                f"{' and '.join(_TABLES)}; fetch it anew"
            )
        tables[_TABLES[last(module)]] = tuple(ids)
    return tables
