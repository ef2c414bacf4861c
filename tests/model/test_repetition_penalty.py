"""Tokens that were said before are less probable, by the prompt and by the reply itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import small_model

from mtsft.errors import InputError
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.generate import GREEDY, Sampling, generate, stream

SLOTS = 24


@pytest.fixture(scope="module")
def model_and_params():
    model = small_model()
    return model, model.init(jax.random.key(3))


def recomputed(model, params, prompt, count, penalty):
    """The reference: the whole sequence again for every token, penalised by hand."""
    tokens = list(prompt)
    for _ in range(count):
        padded = np.pad(tokens, (0, SLOTS - len(tokens)))
        layout = AttentionLayout.of_chains(jnp.array([len(tokens)]), SLOTS)
        hidden, projection, _ = model.apply(params, padded[None], layout)
        logits = np.array(projection.logits(hidden[0, len(tokens) - 1]))
        for token in set(tokens):
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


@pytest.mark.slow
def test_a_reply_repeats_neither_its_prompt_nor_itself(model_and_params):
    model, params = model_and_params
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 96, size).tolist() for size in (3, 9, 1)]
    replies = generate(model, params, prompts, [], 8, Sampling(repetition_penalty=50.0), length_multiple=4)
    assert replies == [recomputed(model, params, prompt, 8, 50.0) for prompt in prompts]
    assert all(len({*reply}) == 8 and not {*reply} & {*prompt} for reply, prompt in zip(replies, prompts))
    assert replies != generate(model, params, prompts, [], 8)
    assert list(stream(model, params, prompts[1], [], 8, Sampling(repetition_penalty=50.0))) == replies[1]


def test_the_penalty_is_that_of_transformers():
    torch = pytest.importorskip("torch")
    from transformers import RepetitionPenaltyLogitsProcessor

    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, 12)).astype(np.float32)
    said = rng.integers(0, 12, (3, 5))
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor(said), torch.tensor(logits))
    seen = np.zeros((3, 12), bool)
    np.put_along_axis(seen, said, True, axis=1)
    keys = jax.random.split(jax.random.key(0), 3)
    penalising = Sampling(repetition_penalty=1.7)
    chosen = penalising.choose(jnp.array(logits), keys, seen_BxV=jnp.array(seen))
    assert chosen.tolist() == theirs.argmax(-1).tolist() != GREEDY.choose(jnp.array(logits), keys).tolist()


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_penalty_is_named(value):
    with pytest.raises(InputError, match=rf"^repetition_penalty={value}: must be above 0$"):
        Sampling(repetition_penalty=value)
