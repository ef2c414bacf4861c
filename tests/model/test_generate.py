from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from support import small_model

from mtsft.errors import InputError
from mtsft.model.attention.cached import attend_cached
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.scores import Scores
from mtsft.model.generate import Sampling, generate, stream
from mtsft.training.sharding import BATCH, make_mesh, param_shardings


@pytest.fixture(scope="module", params=[True, False], ids=["scanned", "unrolled"])
def model_and_params(request):
    model = small_model(scan_layers=request.param)
    return model, model.init(jax.random.key(3))


SLOTS = 20  # enough for a prompt and its reply


@partial(jax.jit, static_argnums=0)
def logits_after(model, params, tokens, n):
    """Of the first n tokens."""
    hidden, projection, _ = model.apply(params, tokens[None], AttentionLayout.of_chains(jnp.array([n]), SLOTS))
    return replace(projection, softcap=0.0).logits(hidden[0, n - 1])  # a cap changes no order


def most_probable(model, params, prompt, count, vocab_size=None):
    """The reference: the whole sequence again for every token."""
    tokens = list(prompt)
    for _ in range(count):
        padded = np.pad(tokens, (0, SLOTS - len(tokens)))
        tokens.append(int(logits_after(model, params, padded, len(tokens))[:vocab_size].argmax()))
    return tokens[len(prompt) :]


def test_cached_decoding_equals_recomputing_for_unequal_prompts(model_and_params):
    model, params = model_and_params
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 96, size).tolist() for size in (3, 12, 1, 8)]
    expected = [most_probable(model, params, prompt, 6) for prompt in prompts]
    replies = generate(model, params, prompts, [], 6, batch_size=3, length_multiple=4)
    assert replies == expected


def test_a_reply_ends_with_its_stop(model_and_params):
    model, params = model_and_params
    prompts = [[1, 2, 3, 4], [9]]
    free = [most_probable(model, params, prompt, 6) for prompt in prompts]
    stops = [free[0][4], 10**6, free[0][3]]
    ends = [next((n for n, token in enumerate(reply) if token in stops), 5) + 1 for reply in free]
    assert ends[0] < ends[1]
    assert generate(model, params, prompts, stops, 6) == [reply[:end] for reply, end in zip(free, ends)]


def test_embeddings_beyond_the_tokenizer_are_never_said(model_and_params):
    model, params = model_and_params
    prompts = [[1, 2, 3, 4], [9]]
    assert max(max(most_probable(model, params, prompt, 6)) for prompt in prompts) >= 50
    expected = [most_probable(model, params, prompt, 6, 50) for prompt in prompts]
    assert generate(model, params, prompts, [], 6, vocab_size=50) == expected
    assert list(stream(model, params, prompts[0], [], 6, vocab_size=50)) == expected[0]


def test_no_prompt_is_no_reply(model_and_params):
    assert generate(*model_and_params, [], [0], 2) == []


def test_an_empty_prompt_is_refused(model_and_params):
    with pytest.raises(ValueError, match="a prompt has no token"):
        generate(*model_and_params, [[1], []], [0], 2)


def test_a_token_without_an_embedding_is_refused(model_and_params):
    with pytest.raises(ValueError, match="a prompt has the token 96, and the model embeds 96"):
        generate(*model_and_params, [[1, 96]], [0], 2)


CUSTOMS = dict(
    sliding_window=4,
    layer_types="sliding,full",
    rope_local_theta=100.0,
    attn_logit_softcapping=0.2,
    final_logit_softcapping=2.0,
)


@pytest.mark.parametrize("scan", [True, False])
def test_windows_and_caps_are_those_of_training(scan):
    model = small_model(scan_layers=scan, **CUSTOMS)
    params = model.init(jax.random.key(3))
    prompts = [[5, 7, 9], list(range(20, 31))]
    assert generate(model, params, prompts, [], 8, length_multiple=4) == [
        most_probable(model, params, prompt, 8) for prompt in prompts
    ]


def test_logits_are_capped_and_in_float32():
    model, tokens, lengths = small_model(**CUSTOMS), np.arange(5), np.array([5])
    params = model.init(jax.random.key(3))
    logits, _ = jax.jit(partial(model.prefill, num_slots=8))(params, tokens[None], lengths)
    raw = logits_after(model, params, np.pad(tokens, (0, SLOTS - 5)), 5)
    assert np.abs(raw).max() > 2
    np.testing.assert_allclose(logits[0], 2 * np.tanh(raw / 2), rtol=1e-4, atol=1e-5)
    low = small_model(dtype="bfloat16")
    shapes = jax.eval_shape(low.init, jax.random.key(0))
    in_bfloat16, _ = jax.eval_shape(partial(low.prefill, num_slots=8), shapes, tokens[None], lengths)
    assert in_bfloat16.dtype == "float32"


def test_what_is_attended_to_in_a_cache_keeps_the_dtype():
    shapes = [jax.ShapeDtypeStruct(shape, "bfloat16") for shape in ((1, 4, 8), (1, 2, 8, 6), (1, 2, 6, 8))]
    attended = jax.eval_shape(partial(attend_cached, mask_BxS=np.ones((1, 6), bool), scores=Scores(1.0)), *shapes)
    assert (attended.shape, attended.dtype) == ((1, 4, 8), "bfloat16")


def test_streamed_is_generated(model_and_params):
    prompt = [1, 2, 3, 4]
    sampling = Sampling(temperature=1.5, seed=5)
    (whole,) = generate(*model_and_params, [prompt], [], 7, sampling)
    for every in (1, 3):
        assert list(stream(*model_and_params, prompt, [], 7, sampling, every, length_multiple=4)) == whole
    assert list(stream(*model_and_params, prompt, [whole[4]], 7, sampling, 3)) == whole[: whole.index(whole[4]) + 1]


def test_what_is_drawn_goes_by_the_seed_and_the_place_of_a_prompt_not_by_its_batch(model_and_params):
    prompts = [[1, 2], [3, 4, 5], [1, 2], [6]]
    sampling = Sampling(temperature=1e6, seed=1)
    together = generate(*model_and_params, prompts, [], 6, sampling)
    assert generate(*model_and_params, prompts, [], 6, sampling, batch_size=1, length_multiple=1) == together
    assert together[0] != together[2]
    assert all(len({*reply}) > 1 for reply in together)  # each token with a key of its own
    assert generate(*model_and_params, prompts, [], 6, Sampling(temperature=1e6, seed=2)) != together


def test_prompts_may_come_in_several_calls(model_and_params):
    model, params = model_and_params
    prompts = [[1, 2], [3, 4, 5], [6], [7, 8]]
    sampling = Sampling(temperature=1.0, seed=3)
    whole = generate(model, params, prompts, [], 6, sampling)
    halves = [generate(model, params, prompts[i : i + 2], [], 6, sampling, first_index=i) for i in (0, 2)]
    assert halves[0] + halves[1] == whole
    assert generate(model, params, prompts[2:], [], 6, sampling) != whole[2:]


def test_decoding_over_a_mesh_is_decoding_on_one_device(model_and_params):
    model, params = model_and_params
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 96, size).tolist() for size in (3, 11, 1, 8, 5)]
    expected, told = generate(model, params, prompts, [], 6), []
    placed = jax.device_put(params, param_shardings(params, mesh))
    rows = NamedSharding(mesh, BATCH)
    got = generate(model, placed, prompts, [], 6, batch_size=4, rows=rows, watch=told.append)
    assert got == expected
    assert told == [4, 1]


LOGITS = np.log(np.array([[0.05, 0.4, 0.3, 0.05, 0.2]], np.float32))


def drawn(sampling, count=400, vocab_size=None):
    keys = jax.random.split(jax.random.key(0), count)
    tokens = sampling.choose(jnp.repeat(LOGITS, count, axis=0), keys, vocab_size)
    return np.bincount(tokens, minlength=5) / count


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0, 1, 0, 0, 0]),
        (Sampling(temperature=1.0), [0.05, 0.4, 0.3, 0.05, 0.2]),
        (Sampling(temperature=0.5), [0.0085, 0.5424, 0.3051, 0.0085, 0.1356]),
        (Sampling(temperature=1.0, top_k=2), [0, 4 / 7, 3 / 7, 0, 0]),
        (Sampling(temperature=1.0, top_k=9), [0.05, 0.4, 0.3, 0.05, 0.2]),
        (Sampling(temperature=1.0, top_p=0.71), [0, 4 / 9, 3 / 9, 0, 2 / 9]),
        (Sampling(temperature=1.0, top_p=0.69), [0, 4 / 7, 3 / 7, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.01), [0, 1, 0, 0, 0]),
        (Sampling(temperature=1.0, top_k=2, top_p=0.5), [0, 1, 0, 0, 0]),
        (Sampling(temperature=0.5, top_p=0.75), [0, 0.64, 0.36, 0, 0]),
    ],
)
def test_tokens_are_drawn_from_the_distribution_asked_for(sampling, expected):
    shares = drawn(sampling)
    np.testing.assert_allclose(shares, expected, atol=0.08)
    assert (shares[np.array(expected) == 0] == 0).all()


@pytest.mark.parametrize(
    ("sampling", "vocab_size", "expected"),
    [
        (Sampling(), 1, [1, 0, 0, 0, 0]),
        (Sampling(temperature=1.0), 3, [1 / 15, 8 / 15, 6 / 15, 0, 0]),
        (Sampling(temperature=1.0, top_k=4), 3, [1 / 15, 8 / 15, 6 / 15, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.9), 3, [0, 4 / 7, 3 / 7, 0, 0]),
        (Sampling(temperature=1.0), 9, [0.05, 0.4, 0.3, 0.05, 0.2]),
    ],
)
def test_what_no_tokenizer_has_is_not_drawn(sampling, vocab_size, expected):
    shares = drawn(sampling, vocab_size=vocab_size)
    np.testing.assert_allclose(shares, expected, atol=0.08)
    assert (shares[np.array(expected) == 0] == 0).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0: must be at least 0"),
        ({"top_k": -1}, "top_k=-1: must be at least 0"),
        ({"top_p": 0.0}, "top_p=0.0: must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5: must be above 0"),
    ],
)
def test_impossible_ways_to_draw_are_named(values, message):
    with pytest.raises(InputError, match=message):
        Sampling(**values)
