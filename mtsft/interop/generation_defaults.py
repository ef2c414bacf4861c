"""How a model is to be sampled by its own generation_config.json, as transformers reads that file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtsft.errors import InputError, one_line
from mtsft.model.generate import GREEDY, Sampling

MAX_NEW = 512  # tokens of a reply, where nothing says how many
_TOP_K = 50  # of transformers, where a file that asks for draws names none
# What else changes which tokens are said, with the values under which it does not; an empty value never does.
_OTHERS: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "penalty_alpha": 0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "force_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "exponential_decay_length_penalty": None,
    "stop_strings": None,
    "max_time": None,
    "dola_layers": None,
    "watermarking_config": None,
}
# The same of what is done to draws alone.
_OF_DRAWS: dict[str, Any] = {"min_p": 0, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "top_h": None}


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """What holds where a user says nothing else.

    Attributes:
        sampling: how tokens are chosen.
        max_new: tokens of a reply at most.
        not_honoured: keys of the file that change what is said and that nothing here does, with their values.
    """

    sampling: Sampling = GREEDY
    max_new: int = MAX_NEW
    not_honoured: Mapping[str, Any] | None = None

    @property
    def remark(self) -> str:
        """What of the file is not done, in a line; "" where all of it is."""
        named = ", ".join(
            f"{key}={one_line(json.dumps(value), 40)}" for key, value in (self.not_honoured or {}).items()
        )
        return f"generation_config.json asks for {named}, which is not done here" if named else ""


NO_DEFAULTS = GenerationDefaults()


def read_generation_defaults(content: bytes | None) -> GenerationDefaults:
    """The defaults of a generation_config.json.

    do_sample, temperature, top_k, top_p, repetition_penalty and max_new_tokens are read; the tokens that end a reply
    are the tokenizer's affair (tokenizer/base.py). Without do_sample the most probable tokens are said, whatever the
    temperature.

    Args:
        content: of the file; None where there is none.

    Raises:
        InputError: it holds no JSON object, or a value that is none.
    """
    if content is None:
        return NO_DEFAULTS
    try:
        config = json.loads(content)
        config = {key: value for key, value in config.items() if value is not None}
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError("generation_config.json holds no JSON object; correct it, or take it away") from error
    draws = config.get("do_sample") is True
    temperature = _number(config, "temperature", 1.0) if draws else 0.0
    top_k = _number(config, "top_k", _TOP_K if draws else 0)
    values = {"top_p": _number(config, "top_p", 1.0), "repetition_penalty": _number(config, "repetition_penalty", 1.0)}
    try:
        sampling = Sampling(temperature=temperature, top_k=int(top_k), **values)
    except InputError as error:
        raise InputError(f"generation_config.json: {error}") from error
    max_new = int(_number(config, "max_new_tokens", MAX_NEW))
    if max_new < 1:
        raise InputError(f"generation_config.json: max_new_tokens={max_new}: must be at least 1")
    others = _OTHERS | (_OF_DRAWS if draws else {})
    asked = {key: config[key] for key, neutral in others.items() if config.get(key) not in (None, neutral, [], {}, "")}
    return GenerationDefaults(sampling=sampling, max_new=max_new, not_honoured=asked)


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if type(value) not in (int, float):
        raise InputError(
            f"generation_config.json: {key} is {one_line(json.dumps(value), 40)}, not a number; correct it, or take it "
            "away"
        )
    return value
