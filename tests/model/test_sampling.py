import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import small_model

from mtsft.model.sampling import generate


@pytest.fixture(scope="module", params=[True, False], ids=["scanned", "unrolled"])
def model_and_params(request):
    model = small_model(scan_layers=request.param)
    return model, model.init(jax.random.key(3))


def most_probable(model, params, prompt, count):
    """The reference: the whole sequence again for every token."""
    tokens = list(prompt)
    for _ in range(count):
        n = len(tokens)
        hidden, projection = model.apply(
            params, jnp.array([tokens]), jnp.arange(n)[None], jnp.full((1, n), n, jnp.int32)
        )
        tokens.append(int((hidden[0, -1] @ projection).argmax()))
    return tokens[len(prompt) :]


def test_cached_decoding_equals_recomputing_for_unequal_prompts(model_and_params):
    model, params = model_and_params
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 96, size).tolist() for size in (3, 11, 1, 8)]
    expected = [most_probable(model, params, prompt, 6) for prompt in prompts]
    replies = generate(model, params, prompts, [], 6, batch_size=3, length_multiple=4)
    assert replies == expected


def test_a_reply_ends_with_its_stop(model_and_params):
    model, params = model_and_params
    prompt = [1, 2, 3, 4]
    free = most_probable(model, params, prompt, 6)
    stops = [free[3], 10**6, free[4]]
    first = min(free.index(free[3]), free.index(free[4]))
    assert generate(model, params, [prompt], stops, 6) == [free[: first + 1]]


def test_an_empty_prompt_is_refused(model_and_params):
    with pytest.raises(ValueError, match="a prompt has no token"):
        generate(*model_and_params, [[1], []], [0], 2)
