"""The tokens whose rows are trained beside adapters: those that a config names, and those that the base model lacks."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtsft.errors import InputError, one_line
from mtsft.model.lora import LoRA
from mtsft.tokenizer.base import Tokenizer

_KEY = "lora.trainable_tokens"
_TABLES = ("embed", "head")


def with_token_ids(config: ConfigDict, tokenizer: Tokenizer, fields: Mapping[str, Any], vocab_size: int) -> ConfigDict:
    """A config whose lora.trainable_tokens are ids, by the table whose rows they are, new tokens among them.

    A table that is trained whole, as lora.modules_to_save says, has none.

    Args:
        config: resolved, but for this.
        tokenizer: finds tokens that are given by their text.
        fields: of the Architecture of the model that the run starts from; of its own where it starts from none.
        vocab_size: of the model that is trained.

    Raises:
        InputError: the value is no list of tokens, or a token is not there.
    """
    if not config.lora.rank:
        if config.lora.trainable_tokens:
            raise InputError(f"{_KEY} is of what is trained beside adapters: set lora.rank above 0")
        return config
    whole, given = LoRA(rank=1, modules_to_save=config.lora.modules_to_save), _parsed(config.lora.trainable_tokens)
    tables = _TABLES[:1] if fields["tie_word_embeddings"] else _TABLES
    given = dict.fromkeys(tables, given) if isinstance(given, list) else given
    if not {*given} <= {*tables}:
        raise InputError(f"{_KEY} names rows of a head, and this model's is its embedding: name those of embed")
    new = range(fields["vocab_size"] or vocab_size, vocab_size)
    ids = {}
    for name in tables:
        tokens = {*new, *(_id(token, tokenizer) for token in given.get(name, []))}
        if tokens and not whole.saves(name):
            ids[name] = sorted(tokens)
    config = config.copy_and_resolve_references()
    config.lora.trainable_tokens = as_key(ids)
    return config


def as_key(ids: Mapping[str, Any]) -> str:
    """The value of lora.trainable_tokens for ids by table."""
    return json.dumps(ids) if ids else ""


def token_ids(value: str) -> dict[str, tuple[int, ...]]:
    """The reverse of `as_key`, as fields of LoRA."""
    return {f"{name}_tokens": tuple(ids) for name, ids in _parsed(value).items()} if value else {}


def _parsed(value: str) -> list | dict[str, list]:
    try:
        parsed = json.loads(value or "[]")
    except ValueError:
        parsed = None
    lists = list(parsed.values()) if isinstance(parsed, dict) and {*parsed} <= {*_TABLES} else [parsed]
    if not all(isinstance(each, list) and all(type(token) in (str, int) for token in each) for each in lists):
        raise InputError(
            f"{_KEY}={one_line(value, 80)}: write a JSON list of tokens, by their text or their id, such as "
            f"'[\"<tool_call>\", 151657]', or one each for {' and '.join(_TABLES)}"
        )
    return parsed


def _id(token: str | int, tokenizer: Tokenizer) -> int:
    index = token if isinstance(token, int) else tokenizer.id_of(token)
    if index is None or not 0 <= index < tokenizer.vocab_size:
        raise InputError(
            f"{_KEY} names {one_line(repr(token), 80)}, which is no token of {tokenizer.source} (ids are below "
            f"{tokenizer.vocab_size:,}); give the token's whole text as the vocabulary has it, or its id"
        )
    return index
