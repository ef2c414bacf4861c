"""A config.json as the fields of Architecture, and back.

What differs between families is data (families.py), and so are the names of their tensors (weight_names.py).
"""

import json
from collections.abc import Mapping
from typing import Any

from mtsft.errors import InputError, one_line
from mtsft.interop.config_values import (
    Values,
    layer_names,
    listed_layers,
    read_rope,
    read_rope_by_kind,
    shortest_pattern,
)
from mtsft.interop.families import FAMILIES, PLAIN, Family
from mtsft.interop.unread_keys import not_understood, not_understood_around
from mtsft.model.architecture import ACTIVATIONS

# Known to change the computation, where it is neither null nor false nor 0; any other key that is not read is refused
# as not understood.
_REFUSED = {
    "quantization_config": "the weights are quantised; take the folder that holds them unquantised",
    "quantization": "the weights are quantised; take the folder that holds them unquantised",
    "compression_config": "the weights are compressed; take the folder that holds them as they are",
    "use_bidirectional_attention": "tokens see later ones; only causal attention is supported",
}


def architecture_fields(config: Mapping[str, Any], where: str) -> tuple[Family, dict[str, Any]]:
    """What a config.json describes. Dropout is not read: training here has none.

    Args:
        config: the JSON object.
        where: the file's name, for errors.

    Returns:
        (the family, every field of Architecture but those in RUNTIME).

    Raises:
        InputError: the file has something that is not supported, or not understood, and would or may change the
            computation.
    """
    family = _family(config, where)
    outer = Values(config, family.defaults, where)
    values = Values(outer.mapping(family.inner), family.defaults, where) if family.inner else outer
    for each in (outer, values):
        _refuse_unsupported(each, family)
    heads, layers = values.size("num_attention_heads"), values.size("num_hidden_layers")
    hidden = values.size("hidden_size")
    head_dim = values.size("head_dim", hidden // heads)
    groups = values.size("num_key_value_heads", heads)
    if heads % groups or head_dim % 2:
        raise values.refusal(
            f"num_attention_heads={heads}, num_key_value_heads={groups} and head_dim={head_dim} make no attention; "
            "heads must be a multiple of key-value heads, and head_dim even"
        )
    kinds = _kinds(values, family, layers)
    local = {}
    if "rope_local_theta" in family.fixed:
        theta, scaling = read_rope(values)
    else:
        theta, scaling, local["rope_local_theta"] = read_rope_by_kind(values)
    if family.model_type == "phi3" and scaling:
        raise values.refusal("rope_scaling of a Phi-3 is not supported; take a model without, as Phi-3-mini-4k")
    read = {name: _field(values, name, key) for name, key in family.keys.items()}
    fields = {
        "vocab_size": values.size("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": values.size("intermediate_size"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head_dim,
        "max_position_embeddings": values.size("max_position_embeddings"),
        "hidden_act": _activation(values, family.activation),
        "rms_norm_eps": values.number("rms_norm_eps"),
        "sliding_window": values.size("sliding_window") if "sliding" in kinds else 0,
        "layer_types": shortest_pattern(kinds),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": outer.flag("tie_word_embeddings"),  # of both, the larger config says it
        "initializer_range": values.number("initializer_range"),
        **family.fixed,
        **read,
        **local,
    }
    _refuse_unknown(outer, values, family)
    return family, fields


def _family(config: Mapping[str, Any], where: str) -> Family:
    architectures, model_type = config.get("architectures"), config.get("model_type")
    if isinstance(architectures, list) and architectures:
        for family in FAMILIES.values():
            if architectures == [family.architecture] and model_type in (None, family.model_type):
                return family
    elif isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    asked = one_line(f"architectures {architectures!r} of model_type {model_type!r}", 200)
    supported = ", ".join(family.architecture for family in FAMILIES.values())
    raise InputError(f"{where}: {asked} cannot be read; take a model that is one of {supported}")


def _refuse_unsupported(values: Values, family: Family) -> None:
    for key, why in _REFUSED.items():
        if values.get(key):
            raise values.refusal(f"{key} is set: {why}")
    for name in ("attention_bias", "mlp_bias", "attn_logit_softcapping", "final_logit_softcapping"):
        if family.fixed.get(name, True) in (False, 0.0) and values.get(name):
            raise values.refusal(f"{name} is set, which a {family.model_type} does not have here")


def _refuse_unknown(outer: Values, values: Values, family: Family) -> None:
    """Raises InputError for the keys that nothing has asked for, unless they are known to change nothing."""
    unknown = not_understood(values.config, values.read, family)
    if family.inner:
        unknown = {f"{family.inner}.{key}": value for key, value in unknown.items()}
        unknown = not_understood_around(outer.config, outer.read, family, values.values) | unknown
    if not unknown:
        return
    named = ", ".join(f"{one_line(key, 60)}={one_line(repr(value), 60)}" for key, value in unknown.items())
    are, do, they, them = ("is", "does", "it", "it") if len(unknown) == 1 else ("are", "do", "they", "them")
    raise values.refusal(
        f"sets {named}, which {are} not understood here and may change what the model computes; if the model's "
        f"documentation says that {they} {do} not, take {them} out of this file in a copy of the folder, and use that"
    )


def _kinds(values: Values, family: Family, count: int) -> list[str]:
    """For each layer "full" or "sliding"."""
    listed = listed_layers(values, count)
    window = None if family.slides == "none" else values.get("sliding_window")
    if family.slides == "late":
        window = window if values.flag("use_sliding_window") else None
    elif family.slides != "none" and values.get("use_sliding_window") not in (None, window is not None):
        raise values.refusal(
            "use_sliding_window and sliding_window say different things; correct the one that is wrong"
        )
    if family.slides in ("alternately", "pattern"):
        every = values.size("sliding_window_pattern") if family.slides == "pattern" else 2
        implied = ["sliding" if (i + 1) % every else "full" for i in range(count)]
    else:
        first = (values.get("max_window_layers") or 0) if family.slides == "late" else 0
        implied = ["sliding" if window is not None and i >= first else "full" for i in range(count)]
    kinds = implied if listed is None else listed
    if (window is None and "sliding" in kinds) or (family.slides in ("none", "all") and kinds != implied):
        raise values.refusal(
            "layer_types and sliding_window say different things of which layers slide; correct the one that is wrong"
        )
    return kinds


def _field(values: Values, name: str, key: str) -> bool | float:
    """The value of a field of Architecture that a config.json has under `key`."""
    return values.flag(key) if isinstance(PLAIN[name], bool) else values.number(key, 0.0)


def _activation(values: Values, key: str) -> str:
    name = values.get(key)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise values.refusal(
            f"{key} is {one_line(repr(name), 60)}, which is not supported; {', '.join(ACTIVATIONS)} are"
        )
    return name


def config_for(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of the first family that has these conventions, for transformers of any age and for vLLM.

    So it has rope_theta and rope_scaling, which transformers 5 reads as well, in place of rope_parameters. The caller
    adds tokens and dtype.

    Args:
        fields: of Architecture.

    Raises:
        InputError: no family has these conventions together.
    """
    family = next((family for family in FAMILIES.values() if _fits(family, fields)), None)
    if family is None:
        odd = [f"{name}={fields[name]}" for name, plain in PLAIN.items() if fields[name] != plain]
        raise InputError(
            f"model: no family of decoders that others can load has layer_types={fields['layer_types']} with "
            f"{', '.join(odd) or 'these sizes'}; set config.model as one of {', '.join(FAMILIES)} does"
        )
    if not fields["max_position_embeddings"]:
        raise InputError("model.max_position_embeddings=0: set it to the positions that the model is made for")
    same = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "max_position_embeddings rms_norm_eps rope_theta tie_word_embeddings initializer_range"
    )
    scaling = json.loads(fields["rope_scaling"] or "null")
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{name: fields[name] for name in same.split()},
        family.activation: fields["hidden_act"],
        "rope_scaling": None if scaling and scaling.get("rope_type", "default") == "default" else scaling,
        **{key: _config_value(fields, name) for name, key in family.keys.items()},
        **_window(family, fields),
    }


def _fits(family: Family, fields: Mapping[str, Any]) -> bool:
    """Whether a model of this family can have these fields."""
    kinds = layer_names(fields["layer_types"], fields["num_hidden_layers"])
    may_slide = {"none": (0,), "all": (0, len(kinds))}.get(family.slides, range(len(kinds) + 1))
    values_by_key: dict[str, set] = {}
    for name, key in family.keys.items():
        values_by_key.setdefault(key, set()).add(fields[name])
    scaled_alike = fields["rope_scaling"] and not fields["rope_local_theta"] and "sliding_attention" in kinds
    return (
        not family.inner
        and all(_convention(fields, name) == value for name, value in family.fixed.items())
        and all(len(values) == 1 for values in values_by_key.values())
        and kinds.count("sliding_attention") in may_slide
        and not (family.whole_heads and fields["hidden_size"] % fields["num_attention_heads"])
        and ("rope_local_theta" in family.fixed or not scaled_alike)
    )


def _convention(fields: Mapping[str, Any], name: str) -> Any:
    if name == "query_pre_attn_scalar" and fields[name] == fields["head_dim"]:
        return 0.0
    return fields[name]


def _config_value(fields: Mapping[str, Any], name: str) -> Any:
    """What a config.json has for a field of Architecture: the reverse of `_field`."""
    if name == "query_pre_attn_scalar":
        value = fields[name] or fields["head_dim"]
        return int(value) if value == int(value) else value  # transformers has it as a whole number
    return fields[name] if isinstance(PLAIN[name], bool) else fields[name] or None


def _window(family: Family, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that say which layers slide, old and new."""
    kinds = layer_names(fields["layer_types"], fields["num_hidden_layers"])
    slides = "sliding_attention" in kinds
    window = fields["sliding_window"] if slides else None
    if family.slides == "none":
        return {}
    if family.slides == "all":
        return {"sliding_window": window}
    keys = {"sliding_window": window, "layer_types": kinds}
    if family.slides == "late":
        first = kinds.index("sliding_attention") if slides else len(kinds)
        return keys | {"use_sliding_window": slides, "max_window_layers": first}
    keys["sliding_window"] = window or fields["max_position_embeddings"]  # wanted also where no layer slides
    if "rope_local_theta" not in family.fixed:
        keys["rope_local_base_freq"] = fields["rope_local_theta"] or fields["rope_theta"]
        pattern = fields["layer_types"].split(",")
        if pattern.count("full") == 1 and pattern[-1] == "full":
            keys["sliding_window_pattern"] = len(pattern)
    return keys
