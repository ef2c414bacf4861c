"""The values of a config.json, checked: rotary positions, layers that slide and plain numbers, of any age."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mtsft.errors import InputError, one_line
from mtsft.model.architecture import ROPE_TYPES, YARN_OPTIONS, rope_fault

_KINDS = {"full_attention": "full", "sliding_attention": "sliding"}


class Values:
    """A config.json whose absent keys have default values. Every method raises InputError for a value of a wrong kind.

    A null is not an absent key: it is a value that the file states.

    Attributes:
        config: the file's own.
        values: of the file, over the defaults.
        where: the file's name, for errors.
        read: the keys that were asked for so far.
    """

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any], where: str):
        self.config, self.values, self.where = config, {**defaults, **config}, where
        self.read: set[str] = set()

    def refusal(self, text: str) -> InputError:
        """An error that names this file."""
        return InputError(f"{self.where}: {text}")

    def get(self, key: str) -> Any:
        """The value, None where it is null or absent."""
        self.read.add(key)
        return self.values.get(key)

    def size(self, key: str, otherwise: int | None = None) -> int:
        """A whole number of at least 1; `otherwise` where there is none."""
        value = otherwise if self.get(key) is None else self.get(key)
        if value is None:
            raise self.refusal(f"says no {key}; copy it from the config.json that the model was published with")
        if type(value) is not int or value < 1:
            raise self.refusal(f"{key} is {one_line(repr(value), 60)}; it must be a whole number of at least 1")
        return value

    def number(self, key: str, otherwise: float | None = None) -> float:
        """A number above 0; `otherwise` where there is none."""
        value = self.get(key)
        if value is None and otherwise is not None:
            return otherwise
        if not is_positive(value):
            raise self.refusal(f"{key} is {one_line(repr(value), 60)}; it must be a number above 0")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; false where there is none."""
        value = self.get(key)
        if value is not None and type(value) is not bool:
            raise self.refusal(f"{key} is {one_line(repr(value), 60)}; it must be true or false")
        return bool(value)

    def mapping(self, key: str) -> dict[str, Any]:
        """An object; empty where there is none."""
        value = self.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.refusal(f"{key} is {one_line(repr(value), 60)}; it must be an object")
        return dict(value or {})


def is_positive(value: Any) -> bool:
    """Whether this is a finite number above 0."""
    return type(value) in (int, float) and 0 < value < math.inf


def read_rope(values: Values) -> tuple[float, str]:
    """(rope_theta, rope_scaling as Architecture has it), from rope_theta and rope_scaling or from rope_parameters.

    As transformers 5 reads them (modeling_rope_utils.py): rope_scaling goes before rope_parameters, and what these say
    before what stands beside them.
    """
    scaling, parameters = values.mapping("rope_scaling"), values.mapping("rope_parameters")
    key, parameters = ("rope_scaling", scaling) if scaling else ("rope_parameters", parameters)
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise values.refusal(f"{key} differs by the kind of layer, which this family's does not")
    original = values.get("original_max_position_embeddings")  # which goes before the one among the parameters
    return _read_rope(values, key, parameters, values.number("rope_theta"), original)


def read_rope_by_kind(values: Values) -> tuple[float, str, float]:
    """(rope_theta and rope_scaling of full layers, rope_theta of sliding ones), of a Gemma 3.

    What transformers reads otherwise here than elsewhere, or not at all, is refused.
    """
    parameters = values.mapping("rope_parameters")
    unknown = [kind for kind in parameters if kind not in _KINDS]
    if unknown or not all(isinstance(value, Mapping | None) for value in parameters.values()):
        raise values.refusal("rope_parameters must hold one object for full_attention and one for sliding_attention")
    full = {**(parameters.get("full_attention") or {}), **values.mapping("rope_scaling")}
    sliding = parameters.get("sliding_attention") or {}
    if full.get("type") and not full.get("rope_type"):
        raise values.refusal(
            "rope_scaling has its type under that name, which not every transformers reads here; call it rope_type"
        )
    if not full.get("truncate", True):
        raise values.refusal("rope_scaling sets truncate, which transformers does not read here; leave it out")
    theta, scaling = _read_rope(values, "rope_parameters", full, values.number("rope_theta"))
    local, scaled = _read_rope(values, "rope_parameters", sliding, values.number("rope_local_base_freq"))
    if scaled:
        raise values.refusal("rope_parameters scale the positions of sliding layers, which is not supported")
    return theta, scaling, local


def _read_rope(
    values: Values, key: str, parameters: Mapping[str, Any], theta: float, original: Any = None
) -> tuple[float, str]:
    """(rope_theta, rope_scaling as Architecture has it) of one object of parameters.

    Args:
        values: the config.json.
        key: where the parameters are in it, for errors.
        parameters: rope_type, its factors, and maybe rope_theta.
        theta: where the parameters have none.
        original: original_max_position_embeddings where it is beside the parameters; None for none.
    """
    for factor in (values.get("partial_rotary_factor"), parameters.get("partial_rotary_factor")):
        if factor not in (None, 1):
            raise values.refusal(f"partial_rotary_factor is {one_line(repr(factor), 60)}; only 1 is supported")
    if parameters.get("rope_theta") is not None:
        theta = Values(parameters, {}, f"{values.where}: {key}").number("rope_theta")
    read = {**parameters, "rope_type": parameters.get("rope_type") or parameters.get("type") or "default"}
    # Without one, the model's own context: to be written down, as it may be another in a run.
    original = original or read.get("original_max_position_embeddings") or values.get("max_position_embeddings")
    read["original_max_position_embeddings"] = original
    if fault := rope_fault(read):
        raise values.refusal(f"{key} {fault}")
    if unknown := [name for name, value in parameters.items() if value is not None and name not in _OF_ROPE]:
        raise values.refusal(
            f"{key} sets {one_line(', '.join(unknown), 80)}, which is not understood here and may turn positions "
            "otherwise; take a model without"
        )
    kind = read["rope_type"]
    if kind == "default":
        return theta, ""
    scaling = {name: read[name] for name in ("rope_type", *ROPE_TYPES[kind])}
    if kind == "yarn":
        scaling |= {name: read[name] for name in YARN_OPTIONS if read.get(name) is not None}
        if read.get("truncate", True) is not True:
            scaling["truncate"] = bool(read["truncate"])
    return theta, json.dumps(scaling)


# All that parameters of positions may say ("finetuned" is a remark); what another type of them reads, this one leaves
# alone, as transformers does.
_OF_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "truncate", "finetuned", *YARN_OPTIONS}
_OF_ROPE.update(*ROPE_TYPES.values())


def listed_layers(values: Values, count: int) -> list[str] | None:
    """layer_types as "full" and "sliding", or None where the file lists none."""
    listed = values.get("layer_types")
    if listed is None:
        return None
    if not isinstance(listed, list) or len(listed) != count:
        raise values.refusal(f"layer_types must be a list of {count}, one for each of num_hidden_layers")
    unknown = [kind for kind in listed if not isinstance(kind, str) or kind not in _KINDS]
    if unknown:
        raise values.refusal(
            f"layer_types has {one_line(repr(unknown[0]), 60)}, which is not supported; {', '.join(_KINDS)} are"
        )
    return [_KINDS[kind] for kind in listed]


def shortest_pattern(kinds: Sequence[str]) -> str:
    """The shortest pattern that the layers repeat, from the first one on, as Architecture.layer_types has it."""
    count = len(kinds)
    length = next(n for n in range(1, count + 1) if all(kinds[i] == kinds[i % n] for i in range(count)))
    return ",".join(kinds[:length])


def layer_names(layer_types: str, count: int) -> list[str]:
    """The reverse of `shortest_pattern`: transformers' layer_types of `count` layers."""
    names = {ours: theirs for theirs, ours in _KINDS.items()}
    pattern = layer_types.split(",")
    return [names[pattern[i % len(pattern)]] for i in range(count)]
