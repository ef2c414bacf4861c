"""Greedy decoding with a key-value cache."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mtsft.model.transformer import Model, Params


@partial(jax.jit, static_argnames=("model", "max_new"))
def _decode(model: Model, params: Params, prompts_BxP, lengths_B, stop_ids, max_new: int):
    B, P = prompts_BxP.shape
    slots_S = jnp.arange(P + max_new)

    def mask(slots_BxL):
        return slots_S[None, None, :] <= slots_BxL[:, :, None]

    slots_BxP = jnp.broadcast_to(jnp.arange(P), (B, P))
    cache = model.empty_cache(B, P + max_new)
    logits_BxPxV, cache = model.apply_cached(params, cache, prompts_BxP, slots_BxP, mask(slots_BxP))
    last_BxV = jnp.take_along_axis(logits_BxPxV, lengths_B[:, None, None] - 1, axis=1)[:, 0]

    def unfinished(carry):
        step, done_B, *_ = carry
        return (step < max_new) & ~done_B.all()

    def say_one(carry):
        step, done_B, last_BxV, cache, said_BxN = carry
        token_B = jnp.where(done_B, stop_ids[0], last_BxV.argmax(-1)).astype(jnp.int32)
        said_BxN = said_BxN.at[:, step].set(token_B)
        # The next token takes the slot behind a sequence, over whatever padding of the prompts stands there.
        slots_Bx1 = (lengths_B + step)[:, None]
        logits, cache = model.apply_cached(params, cache, token_B[:, None], slots_Bx1, mask(slots_Bx1))
        return step + 1, done_B | jnp.isin(token_B, stop_ids), logits[:, 0], cache, said_BxN

    start = (0, jnp.zeros(B, bool), last_BxV, cache, jnp.full((B, max_new), stop_ids[0], jnp.int32))
    return jax.lax.while_loop(unfinished, say_one, start)[-1]


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    max_new: int,
    batch_size: int = 64,
    length_multiple: int = 64,
) -> list[list[int]]:
    """The most probable next token, over and over, until one of `stop_ids` or `max_new` tokens; one list a prompt.

    The stop is part of what is returned where it was said. Prompts are decoded in batches of similar length, padded
    to a multiple of `length_multiple` so that few shapes are compiled. Raises ValueError for an empty prompt.
    """
    if any(not len(prompt) for prompt in prompts):
        raise ValueError("a prompt has no token to go on from")
    stops = np.array(stop_ids or [-1], np.int32)
    replies: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        longest = -(-len(prompts[batch[-1]]) // length_multiple) * length_multiple
        # A last batch that is short is filled up with one-token prompts: the same shape, compiled already.
        padded_BxP = np.zeros((min(batch_size, len(order)), longest), np.int32)
        lengths_B = np.ones(len(padded_BxP), np.int32)
        for row, i in enumerate(batch):
            padded_BxP[row, : len(prompts[i])] = prompts[i]
            lengths_B[row] = len(prompts[i])
        said = jax.device_get(_decode(model, params, padded_BxP, lengths_B, stops, max_new))
        for row, i in enumerate(batch):
            tokens = said[row].tolist()
            end = next((place + 1 for place, token in enumerate(tokens) if token in stop_ids), len(tokens))
            replies[i] = tokens[:end]
    return replies
