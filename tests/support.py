"""Small models, trees and batches that several tests build."""

from functools import partial

import jax
import numpy as np

from mtsft.data.batches import PackedBatch, empty_batch, pack_row
from mtsft.encoding.token_tree import TokenTree
from mtsft.model.architecture import Architecture
from mtsft.model.lora import LoRA
from mtsft.model.shards import ONE_DEVICE
from mtsft.model.transformer import Model
from mtsft.training.losses.forward import response_nll
from mtsft.training.losses.response import ResponseLoss

VOCAB = 96
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=0,
    hidden_act="silu",
    rms_norm_eps=1e-6,
    zero_centered_norms=False,
    post_norms=False,
    qk_norm=False,
    attention_bias=False,
    attention_output_bias=False,
    mlp_bias=False,
    query_pre_attn_scalar=0.0,
    attn_logit_softcapping=0.0,
    final_logit_softcapping=0.0,
    scale_embeddings=False,
    sliding_window=0,
    layer_types="full",
    rope_theta=10_000.0,
    rope_scaling="",
    rope_local_theta=0.0,
    tie_word_embeddings=False,
    initializer_range=0.3,
    dtype="float32",
    param_dtype="float32",
    scan_layers=True,
    remat="none",
    matmul="plain",
    attention_kernel="auto",
)

# A run that is far off after its first step, looked at first and written down once.
DIVERGING = {
    "train.steps": 4,
    "train.learning_rate": 3.0,
    "train.schedule": "constant",
    "train.clip_norm": 0.0,
    "train.warmup_steps": 0,
    "train.max_bad_steps": 50,
    "train.bad_steps_kept": 1,
    "train.overfit_one_batch": 2,
    "train.preflight": "note",
    "checkpoint.every": 1,
    "checkpoint.keep": 9,
    "eval.every": 0,
}


def small_model(lora=None, **changes) -> Model:
    return Model(Architecture(**SIZES | changes), lora or LoRA())


def tree(parents, mask, tokens=None, turns=None, responses=None, seed=0) -> TokenTree:
    """A tree of random tokens with the given parents and response mask; responses: as the turns are, if not given."""
    n = len(parents)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, n) if tokens is None else tokens
    turns = np.zeros(n) if turns is None else turns
    return TokenTree(
        np.array(tokens, np.int32),
        np.array(parents, np.int32),
        np.array(mask, np.float32),
        np.array(turns, np.int32),
        np.full(n, -1, np.int32),
        np.array(turns if responses is None else responses, np.int32),
    )


def chain(mask, seed=0, **kwargs) -> TokenTree:
    return tree(range(-1, len(mask) - 1), mask, seed=seed, **kwargs)


def random_chain(rng, length, share=0.5) -> TokenTree:
    """A chain whose tokens, after the first, are supervised with probability `share`, some with other weights."""
    mask = (rng.random(length) < share) * rng.choice([1.0, 0.5, 2.0], length)
    mask[0] = 0
    return chain(mask, seed=int(rng.integers(2**31)), turns=rng.integers(0, 4, length))


def pack(rows, length) -> PackedBatch:
    """Rows, each a list of trees, as a batch."""
    batch = empty_batch(len(rows), length)
    for i, trees in enumerate(rows):
        pack_row(batch, i, trees)
    return batch


def uneven_batch(rows=32, length=24, seed=0) -> PackedBatch:
    """A batch whose rows, and so its devices, hold very different numbers of supervised tokens."""
    rng = np.random.default_rng(seed)
    packed = []
    for row in range(rows):
        trees, left = [], length - int(rng.integers(0, 4))
        while left >= 3:
            size = int(rng.integers(3, left + 1))
            trees.append(random_chain(rng, size, share=row / rows))
            left -= size
        packed.append(trees)
    return pack(packed, length)


def response_loss(model, partitioner=None, chunk=5) -> ResponseLoss:
    """The loss of responses, activations pinned as a partitioner says."""
    return ResponseLoss(model=model, shards=partitioner.shards if partitioner else ONE_DEVICE, chunk=chunk)


def nll_and_gradient(model, params, batch, mask=None):
    """(weighted nll per slot (B, L), gradient of their sum), with `mask` in place of the batch's own."""
    nll, gradient = _nll_and_gradient(model, params, batch, batch.response_mask if mask is None else mask)
    return np.asarray(nll), gradient


@partial(jax.jit, static_argnums=0)
def _nll_and_gradient(model, params, batch, mask):
    def total(params):
        nll = response_nll(model, params, batch._replace(response_mask=mask), chunk=4) * mask
        return nll.sum(), nll

    (_, nll), gradient = jax.value_and_grad(total, has_aux=True)(params)
    return nll, gradient


def assert_trees_close(a, b, rtol=1e-5, atol=1e-5):
    """Asserts that two gradients agree, leaf by leaf, relative to each leaf's largest entry."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)):
        x, y = np.asarray(x), np.asarray(y)
        scale = max(np.abs(x).max(), atol)
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * scale, err_msg=jax.tree_util.keystr(path))
