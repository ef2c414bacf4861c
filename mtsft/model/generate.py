"""Decoding with a key-value cache: the most probable token, or a draw, over and over until a stop."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from mtsft.errors import InputError
from mtsft.model.parameters import Params
from mtsft.model.transformer import Model


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen: repetition_penalty first, then temperature, top_k, top_p, as transformers does.

    Attributes:
        temperature: 0 for the most probable token.
        top_k: of so many most probable tokens; 0 for all.
        top_p: of the fewest most probable ones that make up this probability (Holtzman et al. 2020, arXiv:1904.09751).
        repetition_penalty: divides the logits of tokens that stand in the prompt or the reply so far, or multiplies
            those below 0 (Keskar et al. 2019, arXiv:1909.05858); 1 for none.
        seed: of what is drawn.

    Raises:
        InputError: for impossible values.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name, value, fits, wanted in (
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "at least 0"),
            ("top_k", self.top_k, self.top_k >= 0, "at least 0 (all tokens)"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < float("inf"), "above 0"),
            ("seed", self.seed, 0 <= self.seed < 2**32, "at least 0 and below 2**32"),
        ):
            if not fits:
                raise InputError(f"{name}={value}: must be {wanted}")

    @property
    def penalizes(self) -> bool:
        """Whether what was said before changes what is chosen."""
        return self.repetition_penalty != 1

    def choose(
        self,
        logits_BxV: jax.Array,
        keys_B: jax.Array,
        vocab_size: int | None = None,
        seen_BxV: jax.Array | None = None,
    ) -> jax.Array:
        """A token of each row, int32 (B,).

        Args:
            logits_BxV: float32.
            keys_B: a random key a row.
            vocab_size: only ids below it may be chosen; None for all.
            seen_BxV: whether a token is one that repetition_penalty is of; None where it is 1.
        """
        size = logits_BxV.shape[-1]
        if seen_BxV is not None:
            penalty = self.repetition_penalty
            penalized_BxV = jnp.where(logits_BxV > 0, logits_BxV / penalty, logits_BxV * penalty)
            logits_BxV = jnp.where(seen_BxV, penalized_BxV, logits_BxV)
        if vocab_size is not None and vocab_size < size:
            logits_BxV = jnp.where(jnp.arange(size)[None] < vocab_size, logits_BxV, -jnp.inf)
        if not self.temperature:
            return logits_BxV.argmax(-1).astype(jnp.int32)
        logits_BxV = logits_BxV / self.temperature
        draw = jax.vmap(jax.random.categorical)
        if not self.top_k and self.top_p == 1:
            return draw(keys_B, logits_BxV).astype(jnp.int32)
        logits_BxT, tokens_BxT = jax.lax.top_k(logits_BxV, min(self.top_k or size, size))
        probabilities_BxT = jax.nn.softmax(logits_BxT)
        before_BxT = probabilities_BxT.cumsum(-1) - probabilities_BxT
        logits_BxT = jnp.where(before_BxT < self.top_p, logits_BxT, -jnp.inf)
        return jnp.take_along_axis(tokens_BxT, draw(keys_B, logits_BxT)[:, None], axis=1)[:, 0].astype(jnp.int32)


GREEDY = Sampling()


class Decoding(NamedTuple):
    """Sequences that are being decoded.

    Attributes:
        slots_B: where the next token goes in the cache.
        done_B: whether a stop was generated.
        logits_BxV: of the next token.
        cache: of `Model.prefill`.
        keys_B: a random key for each sequence.
        seen_BxV: which tokens a sequence holds; None where nothing asks for it.
    """

    slots_B: jax.Array
    done_B: jax.Array
    logits_BxV: jax.Array
    cache: Any
    keys_B: jax.Array
    seen_BxV: jax.Array | None


@partial(jax.jit, static_argnames=("model", "num_slots", "penalizes"))
def _begin(
    model: Model, params: Params, prompts_BxP, lengths_B, done_B, indices_B, seed, num_slots: int, penalizes: bool
) -> Decoding:
    """After the prompts; what one draws depends on its index among all prompts and the seed (data of a key) alone."""
    keys_B = jax.vmap(partial(jax.random.fold_in, jax.random.wrap_key_data(seed)))(indices_B)
    logits_BxV, cache = model.prefill(params, prompts_BxP, lengths_B, num_slots)
    seen_BxV = None
    if penalizes:
        rows_Bx1 = jnp.arange(len(lengths_B))[:, None]
        is_prompt_BxP = jnp.arange(prompts_BxP.shape[1])[None] < lengths_B[:, None]
        seen_BxV = jnp.zeros(logits_BxV.shape, bool).at[rows_Bx1, prompts_BxP].max(is_prompt_BxP)
    return Decoding(lengths_B, done_B, logits_BxV, cache, keys_B, seen_BxV)


@partial(jax.jit, static_argnames=("model", "sampling", "count", "vocab_size"), donate_argnames="decoding")
def _decode(
    model: Model, params: Params, decoding: Decoding, stops, sampling: Sampling, count: int, vocab_size: int | None
):
    """`count` more tokens of every sequence, int32 (B, count), or fewer where all have stopped; -1 after a stop."""

    def unfinished(carry):
        step, decoding, _ = carry
        return (step < count) & ~decoding.done_B.all()

    def decode_one(carry):
        step, (slots_B, done_B, logits_BxV, cache, keys_B, seen_BxV), tokens_BxN = carry
        tokens_B = sampling.choose(logits_BxV, jax.vmap(jax.random.fold_in)(keys_B, slots_B), vocab_size, seen_BxV)
        tokens_BxN = tokens_BxN.at[:, step].set(jnp.where(done_B, -1, tokens_B))
        # The token takes the slot behind its sequence, over whatever padding of the prompts stands there.
        logits_BxV, cache = model.decode(params, cache, tokens_B, slots_B)
        done_B |= jnp.isin(tokens_B, stops)
        if seen_BxV is not None:
            seen_BxV = seen_BxV.at[jnp.arange(len(tokens_B)), tokens_B].set(True)
        return step + 1, Decoding(slots_B + 1, done_B, logits_BxV, cache, keys_B, seen_BxV), tokens_BxN

    tokens_BxN = jnp.full((len(decoding.slots_B), count), -1, jnp.int32)
    _, decoding, tokens_BxN = jax.lax.while_loop(unfinished, decode_one, (0, decoding, tokens_BxN))
    return decoding, tokens_BxN


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    max_new: int,
    sampling: Sampling = GREEDY,
    batch_size: int = 64,
    length_multiple: int = 64,
    rows: NamedSharding | None = None,
    watch: Callable[[int], None] = lambda count: None,
    vocab_size: int | None = None,
) -> list[list[int]]:
    """What the model says after each prompt, until a stop or `max_new` tokens.

    Prompts are decoded in batches of similar length. What is drawn for a prompt depends on the seed and its index
    among the prompts alone.

    Args:
        model: the decoder.
        params: its parameters.
        prompts: token ids.
        stop_ids: tokens that end a reply.
        max_new: tokens of a reply at most.
        sampling: how tokens are chosen.
        batch_size: prompts that are decoded together.
        length_multiple: prompts are padded to a multiple of it, so that few shapes are compiled.
        rows: the sharding of a batch's sequences over a mesh that holds `params`; every process then gives the same
            prompts and gets all replies.
        watch: called after each batch with the number of its replies.
        vocab_size: above every id of the tokenizer; embeddings from there on are padding, never chosen. None for none.

    Returns:
        The tokens of each reply, its stop among them where there was one.

    Raises:
        ValueError: for an empty prompt, or one with a token that the model has no embedding of.
    """
    _check(model, prompts)
    stops = np.array(stop_ids or [-1], np.int32)
    seed = _seed(sampling)
    replies: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = batch_size if rows is not None else max(1, min(batch_size, len(order)))
    for first in range(0, len(order), size):
        batch = order[first : first + size]
        longest = -(-len(prompts[batch[-1]]) // length_multiple) * length_multiple
        # A last batch that is short is filled up with one-token prompts: the same shape, compiled already.
        padded_BxP, lengths_B = np.zeros((size, longest), np.int32), np.ones(size, np.int32)
        done_B, indices_B = np.ones(size, bool), np.zeros(size, np.int32)
        for row, i in enumerate(batch):
            padded_BxP[row, : len(prompts[i])] = prompts[i]
            lengths_B[row], done_B[row], indices_B[row] = len(prompts[i]), False, i
        arguments = (padded_BxP, lengths_B, done_B, indices_B)
        if rows is not None:
            arguments = [jax.make_array_from_callback(x.shape, rows, x.__getitem__) for x in arguments]
        decoding = _begin(model, params, *arguments, seed, longest + max_new, sampling.penalizes)
        tokens_BxN = _decode(model, params, decoding, stops, sampling, max_new, vocab_size)[1]
        tokens_BxN = multihost_utils.process_allgather(tokens_BxN, tiled=True) if rows else jax.device_get(tokens_BxN)
        for row, i in enumerate(batch):
            replies[i] = tokens_BxN[row][tokens_BxN[row] >= 0].tolist()
        watch(len(batch))
    return replies


def stream(
    model: Model,
    params: Params,
    prompt: Sequence[int],
    stop_ids: Sequence[int],
    max_new: int,
    sampling: Sampling = GREEDY,
    every: int = 1,
    length_multiple: int = 256,
    vocab_size: int | None = None,
) -> Iterator[int]:
    """The tokens that `generate` gives for one prompt, as they come, `every` at a time; arguments as there."""
    _check(model, [prompt])
    stops = np.array(stop_ids or [-1], np.int32)
    longest = -(-len(prompt) // length_multiple) * length_multiple
    padded_1xP = np.zeros((1, longest), np.int32)
    padded_1xP[0, : len(prompt)] = prompt
    num_slots = longest + -(-max_new // every) * every
    arguments = (np.array([len(prompt)], np.int32), np.zeros(1, bool), np.zeros(1, np.int32), _seed(sampling))
    decoding = _begin(model, params, padded_1xP, *arguments, num_slots, sampling.penalizes)
    count = 0
    while count < max_new:
        decoding, tokens_1xN = _decode(model, params, decoding, stops, sampling, every, vocab_size)
        for token in jax.device_get(tokens_1xN)[0, : max_new - count].tolist():
            if token < 0:
                return
            yield token
            if token in stop_ids:
                return
        count += every


def _seed(sampling: Sampling) -> np.ndarray:
    """On the host: the same for the programs of all processes."""
    return np.asarray(jax.random.key_data(jax.random.key(sampling.seed)))


def _check(model: Model, prompts: Sequence[Sequence[int]]) -> None:
    if any(not len(prompt) for prompt in prompts):
        raise ValueError("a prompt has no token to go on from")
    highest = max((max(prompt) for prompt in prompts), default=0)
    if highest >= model.arch.vocab_size:
        raise ValueError(f"a prompt has the token {highest}, and the model embeds {model.arch.vocab_size}")
