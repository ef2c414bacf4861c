"""The configs of a Hugging Face folder: of the model, of generation, of the tokenizer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from mtsft.errors import InputError
from mtsft.interop import config_json
from mtsft.interop.hf_folder import CONFIG
from mtsft.model.architecture import RUNTIME, Architecture

# What may differ between a model and the config.json that it came with.
_OWN = ("vocab_size", "initializer_range")
_POSITIONS = ("rope_theta", "rope_scaling", "max_position_embeddings")
PUBLISHED = f"the published {CONFIG}"  # what errors call it where its path is not known
# Keys that name code, or a folder, that an export does not have.
_DROPPED = ("auto_map", "_name_or_path")


def model_config(
    arch: Architecture,
    config: Mapping[str, Any] | None,
    stop_ids: Sequence[int],
    bos_id: int | None,
    pad_id: int | None,
    dtype: str,
) -> dict[str, Any]:
    """The config.json of an export. Of a multimodal config, only the part of the text model stays.

    Older transformers read torch_dtype, newer ones dtype.

    Args:
        arch: the model's.
        config: the config.json that the model came with; None to make one.
        stop_ids: tokens that end a turn, the usual one first.
        bos_id: the token at the beginning of a text; None for none.
        pad_id: the padding token; None for none.
        dtype: of the tensors, "float32" or "bfloat16".

    Raises:
        InputError: no family fits the model.
    """
    fields = _fields(arch)
    own = {"dtype": dtype, "torch_dtype": dtype, "vocab_size": arch.vocab_size}
    if config is None:
        tokens = {"bos_token_id": bos_id, "eos_token_id": list(stop_ids) or None, "pad_token_id": pad_id}
        return config_json.config_for(fields) | tokens | own
    config = _adapted(config, fields, PUBLISHED) | own
    ends = config.get("eos_token_id")
    if stop_ids and stop_ids[0] not in (ends if isinstance(ends, list) else [ends]):
        config["eos_token_id"] = stop_ids[0]  # the base's old end stays in generation_config.json
    return config


def check_exportable(arch: Architecture, published: Mapping[str, Any], where: str) -> None:
    """Checks, before training, that `export` could write this model with the config.json that its base came with.

    Args:
        arch: the model's.
        published: that config.json.
        where: its name, for errors.

    Raises:
        InputError: it could not.
    """
    _adapted(published, _fields(arch), where)


def _fields(arch: Architecture) -> dict[str, Any]:
    return {name: value for name, value in asdict(arch).items() if name not in RUNTIME}


def _adapted(config: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A published config.json with the positions of the model.

    Args:
        config: the published one.
        fields: of the model's Architecture.
        where: the name of the published one, for errors.

    Raises:
        InputError: the model differs from it in more than its positions.
    """
    if config_json.architecture_fields(config, where)[0].inner:
        config = _text_part(config, fields)
    config = {key: value for key, value in config.items() if key not in _DROPPED}
    family, described = config_json.architecture_fields(config, where)
    if changed := [name for name in _POSITIONS if described[name] != fields[name]]:
        config = _with_positions(config, fields)
        try:
            described = config_json.architecture_fields(config, where)[1] | {"rope_scaling": fields["rope_scaling"]}
        except InputError as error:
            keys = ", ".join(f"model.{name}={fields[name]!r}" for name in changed)
            raise InputError(
                f"{keys} cannot be written in a {CONFIG} of the family {family.model_type}; "
                f"leave {'it' if len(changed) == 1 else 'them'} to the model that {where} is of"
            ) from error
    for name, value in fields.items():
        if described[name] != value and name not in _OWN:
            raise InputError(
                f"{where} has {name}={described[name]!r}, and the model {value!r}; "
                f"export a model with the {CONFIG} that it was made from, or with none"
            )
    return config


def _with_positions(config: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose positions are those of the model, under the names that every transformers reads."""
    given = {"rope_scaling": json.loads(fields["rope_scaling"] or "null")}
    given |= {name: fields[name] for name in ("rope_theta", "max_position_embeddings")}
    if fields["rope_local_theta"]:
        given["rope_local_base_freq"] = fields["rope_local_theta"]
    # What stands beside the parameters, transformers would prefer to what the model's own say.
    gone = ("rope_parameters", "original_max_position_embeddings" if fields["rope_scaling"] else "")
    return {key: value for key, value in config.items() if key not in gone} | given


def _text_part(config: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the text model inside a multimodal Gemma 3, on its own."""
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
    inner = {key: value for key, value in config["text_config"].items() if value is not None}
    return (
        config_json.config_for(fields)
        | tokens
        | inner
        | {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "tie_word_embeddings": fields["tie_word_embeddings"],
        }
    )


def generation_config(original: bytes | None, stop_ids: Sequence[int], bos_id: int | None, pad_id: int | None) -> bytes:
    """generation_config.json: the original where it has all of `stop_ids`, else with the missing ones added.

    Args:
        original: the file that the model came with; None where it came with none.
        stop_ids: tokens that end a turn.
        bos_id: the token at the beginning of a text; None for none.
        pad_id: the padding token; None for none.

    Raises:
        InputError: the original holds no JSON object.
    """
    try:
        config = json.loads(original or b"{}")
        ends = config.get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise InputError("generation_config.json holds no JSON object; correct it, or take it away") from error
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if original is not None and {*stop_ids} <= {*ends}:
        return original
    ends = list(dict.fromkeys([*ends, *stop_ids]))
    own = {"bos_token_id": bos_id, "pad_token_id": pad_id}
    config = {name: value for name, value in own.items() if value is not None} | config
    return json_file(config | ({"eos_token_id": ends} if ends else {}))


def sentence_piece_config(model: bytes, stop_ids: Sequence[int]) -> dict[str, Any]:
    """tokenizer_config.json for a SentencePiece model that has none, so that transformers encodes as is done here.

    No space is put before a text and no token around it. Tokens of white space alone are not special: transformers
    leaves special ones out of what it decodes.
    """
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    pieces, spec = [piece.piece for piece in proto.pieces], proto.trainer_spec

    def named(index: int) -> str | None:
        return pieces[index] if 0 <= index < len(pieces) else None

    return {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_prefix_space": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "unk_token": named(spec.unk_id),
        "bos_token": named(spec.bos_id),
        "eos_token": named(stop_ids[0] if stop_ids else spec.eos_id),
        "pad_token": named(spec.pad_id),
        "additional_special_tokens": [
            piece.piece
            for piece in proto.pieces
            if piece.type in (kinds.CONTROL, kinds.USER_DEFINED) and piece.piece.strip()
        ],
    }


def json_file(value: Any) -> bytes:
    """A JSON file of this value."""
    return (json.dumps(value, indent=2) + "\n").encode()
