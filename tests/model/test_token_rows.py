"""Rows of single tokens that are trained apart: the same function as in their table, and a gradient of them alone."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from support import assert_trees_close, nll_and_gradient, small_model, uneven_batch

from mtsft.errors import InputError
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.lora import TOKEN_ROWS, LoRA
from mtsft.model.merge import merge
from mtsft.model.parameters import join, split
from mtsft.training.losses.forward import weighted_nll
from mtsft.training.sharding import BATCH, make_mesh, param_shardings

SOFT_CAP = dict(final_logit_softcapping=3.0)


@pytest.fixture(scope="module")
def batch():
    return uneven_batch(rows=4)


def case(batch, tied, **changes):
    """(model, parameters with rows apart, the plain model, its parameters): of tokens that are read and supervised."""
    supervised = batch.tokens[batch.response_mask > 0]
    context = batch.tokens[(batch.response_mask == 0) & (batch.segment_ids > 0)]
    tokens = tuple(sorted({0, int(supervised[0]), int(supervised[-1]), int(context[0]), 95}))
    lora = LoRA(rank=2, targets="query", embed_tokens=tokens, head_tokens=() if tied else tokens[1:])
    model, plain = (small_model(each, tie_word_embeddings=tied, **changes) for each in (lora, None))
    params = model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    for part in ("embed", "head")[: 1 if tied else 2]:
        rows = params[part][TOKEN_ROWS]
        params[part][TOKEN_ROWS] = jnp.asarray(rng.normal(0, 0.3, rows.shape), jnp.float32)
    return model, params, plain, merge(params, lora)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_start_as_those_of_their_table(batch, tied):
    model, _, plain, _ = case(batch, tied)
    params, whole = (each.init(jax.random.key(0)) for each in (model, plain))
    merged = merge(params, model.lora)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), merged, whole))
    np.testing.assert_array_equal(
        params["embed"][TOKEN_ROWS], whole["embed"]["embedding"][np.array(model.lora.embed_tokens)]
    )


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_rows_apart_are_rows_of_the_table(batch, tied, scan):
    model, params, plain, merged = case(batch, tied, scan_layers=scan, **SOFT_CAP)
    nll, gradient = nll_and_gradient(model, params, batch)
    expected, gradient_of_all = nll_and_gradient(plain, merged, batch)
    np.testing.assert_allclose(nll, expected, rtol=1e-6)
    ids = list(model.lora.embed_tokens)
    of_table = gradient_of_all["embed"]["embedding"]
    np.testing.assert_allclose(gradient["embed"][TOKEN_ROWS], of_table[np.array(ids)], atol=1e-5)
    assert (np.abs(gradient["embed"][TOKEN_ROWS]).max(1) > 1e-3).sum() >= 3
    assert not np.asarray(gradient["embed"]["embedding"])[ids].any()
    if not tied:
        ids = list(model.lora.head_tokens)
        columns = gradient_of_all["head"]["kernel"][:, np.array(ids)].T
        np.testing.assert_allclose(gradient["head"][TOKEN_ROWS], columns, atol=1e-5)
        assert np.abs(columns).max() > 1e-3
        assert not np.asarray(gradient["head"]["kernel"])[:, ids].any()


@pytest.mark.parametrize("tied", [True, False])
def test_decoding_sees_them_too(batch, tied):
    model, params, plain, merged = case(batch, tied)
    tokens, lengths = jnp.asarray(batch.tokens[:2, :9]), jnp.array([9, 9])
    (ours, cache), (expected, _) = (m.prefill(p, tokens, lengths, 12) for m, p in ((model, params), (plain, merged)))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    token = jnp.full(2, model.lora.embed_tokens[1])
    ours, _ = model.decode(params, cache, token, lengths)
    expected, _ = plain.decode(merged, plain.prefill(merged, tokens, lengths, 12)[1], token, lengths)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_no_gradient_of_the_whole_table_is_formed(batch, tied):
    """Where rows alone are trained: neither a product of the table's shape, nor a sum over tokens into it."""
    model, params, _, _ = case(batch, tied, vocab_size=101)
    trained, frozen = split(params, model.lora.adds)

    def loss(trained):
        return weighted_nll(model, join(trained, frozen), batch, batch.response_mask, 16).nll

    program = jax.jit(jax.grad(loss)).lower(trained).compile().as_text()
    whole = jax.jit(jax.grad(lambda params: weighted_nll(model, params, batch, batch.response_mask, 16).nll))
    whole = whole.lower(params)
    made, made_of_all = (_table_sized(text) for text in (program, whole.compile().as_text()))
    summed = made_of_all - made
    assert "dot" in summed
    assert summed & {"scatter", "add"}  # XLA's older emitters write a scatter as a loop that adds
    # Moved and, for a chunk that is skipped, filled with 0: but nothing is summed up in it.
    assert made <= {"broadcast", "parameter", "copy", "transpose", "bitcast", "get-tuple-element", "fusion", "constant"}


def _table_sized(program):
    """The operations of a compiled program that give an array of a table's shape."""
    return {m[1] for m in re.finditer(r" = f32\[(?:101,32|32,101)\]\S* ([\w-]+)\(", program)}


def test_tokens_must_be_of_the_model():
    with pytest.raises(InputError, match=r"^lora.trainable_tokens names the token 96, and the model embeds 96$"):
        small_model(LoRA(rank=1, targets="query", embed_tokens=(3, 96)))
    with pytest.raises(
        InputError, match=r"^lora.trainable_tokens is of what is trained beside adapters: set lora.rank"
    ):
        LoRA(embed_tokens=(3,))
    with pytest.raises(InputError, match=r"^lora.modules_to_save is of what is trained beside adapters: set lora.rank"):
        LoRA(modules_to_save="embed")
    with pytest.raises(InputError, match=r"^lora.modules_to_save='\(' is not a regular expression"):
        LoRA(rank=1, modules_to_save="(")


def test_what_is_trained_whole_is_kept_in_float32():
    lora = LoRA(rank=1, targets="query", modules_to_save="^head$|norm")
    params = small_model(lora, param_dtype="bfloat16", qk_norm=True).init(jax.random.key(0))
    trained, frozen = split(params, lora.adds)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained)} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(frozen)} == {"bfloat16"}
    assert {*trained["layers"]} == {"attention", "attention_norm", "mlp_norm"}
    assert {*trained["layers"]["attention"]} == {"query", "query_norm", "key_norm"}
    assert {*trained} == {"head", "layers", "norm"}
    layout = AttentionLayout.of_chains(jnp.array([8]), 8)
    assert (
        small_model(lora, dtype="bfloat16", qk_norm=True).apply(params, jnp.ones((1, 8), int), layout)[0].dtype
        == jnp.bfloat16
    )


@pytest.mark.parametrize("tied", [True, False])
def test_over_a_mesh_the_numbers_are_the_same(batch, tied):
    model, params, _, _ = case(batch, tied)
    expected, gradient = nll_and_gradient(model, params, batch)
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    placed = jax.device_put(params, param_shardings(params, mesh))
    rows = jax.device_put(batch, NamedSharding(mesh, BATCH))
    nll, sharded = nll_and_gradient(model, placed, rows)
    np.testing.assert_allclose(nll, expected, rtol=1e-5, atol=1e-6)
    assert_trees_close(jax.device_get(sharded), jax.device_get(gradient))
