"""How a model is sampled by its own generation_config.json."""

import json

import pytest

from mtsft.errors import InputError
from mtsft.interop.generation_defaults import MAX_NEW, read_generation_defaults
from mtsft.model.generate import GREEDY, Sampling


def read(**config):
    return read_generation_defaults(json.dumps(config).encode())


def test_without_the_file_the_most_probable_tokens_are_said():
    defaults = read_generation_defaults(None)
    assert (defaults.sampling, defaults.max_new, defaults.remark) == (GREEDY, MAX_NEW, "")


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        # As published: Llama 3, Qwen2.5, Qwen3, Gemma 3, SmolLM2.
        (dict(do_sample=True, temperature=0.6, top_p=0.9), Sampling(temperature=0.6, top_p=0.9, top_k=50)),
        (
            dict(do_sample=True, repetition_penalty=1.05, temperature=0.7, top_p=0.8, top_k=20),
            Sampling(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05),
        ),
        (dict(do_sample=True, temperature=0.6, top_k=20, top_p=0.95), Sampling(temperature=0.6, top_p=0.95, top_k=20)),
        (dict(do_sample=True, top_k=64, top_p=0.95, bos_token_id=2), Sampling(temperature=1, top_k=64, top_p=0.95)),
        (dict(_from_model_config=True, eos_token_id=2, use_cache=True), GREEDY),
        # What is drawn by default is the most probable all the same; a user who turns the temperature up has the rest.
        (dict(temperature=0.6, top_p=0.9), Sampling(top_p=0.9)),
        (dict(do_sample=False, top_k=7), Sampling(top_k=7)),
        (dict(do_sample=True, temperature=None, top_k=0, top_p=None), Sampling(temperature=1.0)),
    ],
)  # fmt: skip
def test_what_transformers_would_do_is_done(config, sampling):
    defaults = read(**config)
    assert (defaults.sampling, defaults.remark) == (sampling, "")


def test_the_length_of_replies_is_the_file_s():
    assert read(max_new_tokens=9).max_new == 9


def test_values_are_those_of_transformers_own_class():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GenerationConfig(do_sample=True, temperature=0.5, top_k=3, top_p=0.5, repetition_penalty=1.5)
    defaults = read_generation_defaults(theirs.to_json_string(use_diff=False).encode())
    assert defaults.sampling == Sampling(temperature=0.5, top_k=3, top_p=0.5, repetition_penalty=1.5)
    assert defaults.remark == ""


def test_what_is_not_done_is_named_and_what_changes_nothing_is_not():
    remark = read(do_sample=True, min_p=0.1, num_beams=4, no_repeat_ngram_size=0, typical_p=1.0, stop_strings=[]).remark
    assert remark == "generation_config.json asks for num_beams=4, min_p=0.1, which is not done here"
    assert read(min_p=0.1).remark == ""  # of draws alone
    long = read(suppress_tokens=[*range(100)]).remark
    assert len(long) < 120


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"[]", "holds no JSON object"),
        (b"{", "holds no JSON object"),
        (b'{"do_sample": true, "temperature": "0.6"}', 'temperature is "0.6", not a number'),
        (b'{"do_sample": true, "temperature": true}', "temperature is true, not a number"),
        (b'{"do_sample": true, "temperature": -1}', "temperature=-1: must be at least 0"),
        (b'{"top_p": 2}', "top_p=2: must be above 0 and at most 1"),
        (b'{"max_new_tokens": 0}', "max_new_tokens=0: must be at least 1"),
    ],
)
def test_a_wrong_value_is_named(content, wrong):
    with pytest.raises(InputError, match=rf"^generation_config\.json:? {wrong}"):
        read_generation_defaults(content)
