"""Small random models of every family, as transformers makes them, and the same parameters as ours."""

import json
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from mtsft.interop.config_json import architecture_fields
from mtsft.interop.weight_names import ignored, standard_name, tensor_slices
from mtsft.model.architecture import RUNTIME, Architecture
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.transformer import Model
from mtsft.training.head import HeadLoss
from mtsft.training.objective import LossSums

UNROLLED = RUNTIME | dict(scan_layers=False)
SIZES = dict(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
GEMMA = SIZES | dict(head_dim=24, sliding_window=7, query_pre_attn_scalar=12)
PHI_TOKENS = dict(pad_token_id=0, eos_token_id=1, bos_token_id=2)  # its own are beyond this vocabulary

# Configs in the old form, as most published ones are: every family, every custom that one can choose.
CASES = {
    "llama": dict(
        SIZES,
        model_type="llama",
        head_dim=24,
        tie_word_embeddings=True,
        rope_scaling=LLAMA3 | dict(original_max_position_embeddings=64),
    ),
    "llama, biases": dict(
        SIZES,
        model_type="llama",
        attention_bias=True,
        mlp_bias=True,
        hidden_act="gelu",
        rope_scaling=dict(type="linear", factor=2.5),
    ),
    "mistral": dict(SIZES, model_type="mistral", head_dim=24, sliding_window=7, rope_theta=5e4),
    "qwen2": dict(
        SIZES,
        model_type="qwen2",
        num_hidden_layers=3,
        use_sliding_window=True,
        sliding_window=7,
        max_window_layers=1,
        rope_scaling=YARN,
        tie_word_embeddings=True,
    ),
    "qwen3": dict(SIZES, model_type="qwen3", head_dim=24, attention_bias=True, tie_word_embeddings=True),
    "gemma2": dict(
        GEMMA, model_type="gemma2", num_hidden_layers=3, attn_logit_softcapping=3.0, final_logit_softcapping=2.0
    ),
    "gemma2, no caps": dict(
        GEMMA,
        model_type="gemma2",
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        attention_bias=True,
        tie_word_embeddings=False,
    ),
    "gemma3": dict(
        GEMMA,
        model_type="gemma3_text",
        num_hidden_layers=4,
        sliding_window_pattern=3,
        rope_theta=2e4,
        rope_local_base_freq=500.0,
        rope_scaling=dict(factor=8.0, rope_type="linear"),
        final_logit_softcapping=2.0,
    ),
    "phi3": dict(SIZES, model_type="phi3", sliding_window=7, num_key_value_heads=1, **PHI_TOKENS),
}


class Pair(NamedTuple):
    """One model twice. theirs: of transformers. params: ours, in the unrolled layout; sources: where each was."""

    theirs: torch.nn.Module
    model: Model
    params: dict
    tensor_slices: dict
    values: dict


def their_config(values):
    return transformers.AutoConfig.for_model(**values)


def as_json(config):
    """What transformers writes of it."""
    return json.loads(config.to_json_string())


def randomise(module, seed):
    """Weights that matter: sizes that keep activations near 1, and no norm or bias as it starts."""
    generator = torch.Generator().manual_seed(seed)
    zero_centred = module.config.model_type.startswith("gemma")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            elif parameter.ndim == 1:
                parameter.copy_((1.5 * (zero_centred and "post_" in name) + (not zero_centred)) + 0.3 * noise)
            elif "embed" in name or "lm_head" in name:
                parameter.copy_((0.05 if zero_centred else 0.15) * noise)  # else tied models say one word over and over
            else:
                parameter.copy_(1.5 * noise * parameter.shape[1] ** -0.5)


def make(values, seed=0) -> Pair:
    """A random model of this config."""
    config = their_config(values)
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomise(theirs, seed)
    return pair_of(theirs, values)


def architecture(values) -> Architecture:
    return Architecture(**architecture_fields(values, "config.json")[1], **UNROLLED)


def pair_of(theirs, values) -> Pair:
    """Reads the parameters of transformers' model, and asserts that nothing is left over."""
    architectures = [type(theirs).__name__]
    family, fields = architecture_fields(values | {"architectures": architectures}, "config.json")
    held = {standard_name(family, name): value for name, value in theirs.state_dict().items()}
    found = tensor_slices(family, fields)
    skipped = ignored(family, fields)
    left = {name for name in held if not skipped.fullmatch(name)} - {source.name for source in found.values()}
    assert not left
    params = {"layers": {}}
    for path, source in found.items():
        put(params, path, jnp.array(part(held[source.name], source)))
    return Pair(theirs, Model(Architecture(**fields, **UNROLLED)), params, found, held)


def part(tensor, source):
    """The part of a tensor that is one parameter of ours."""
    array = tensor.detach().float().numpy()
    array = array if source.rows is None else array[slice(*source.rows)]
    return array.T if source.transposed else array


def put(tree, path, leaf):
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf


def at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def scanned(model):
    return replace(model, arch=replace(model.arch, scan_layers=True))


def layout_of(tokens):
    B, L = tokens.shape
    return AttentionLayout.of_chains(jnp.full(B, L, jnp.int32), L)


@partial(jax.jit, static_argnames="model")
def our_logits(model, params, tokens):
    hidden, projection, _ = model.apply(params, tokens, layout_of(tokens))
    return projection.logits(hidden)


@partial(jax.jit, static_argnames="model")
def our_step(model, params, tokens, mask):
    """(mean loss, logits, gradient), by the pieces of a training step."""

    def loss(params):
        hidden, projection, _ = model.apply(params, tokens, layout_of(tokens))
        parents = jnp.broadcast_to(jnp.arange(-1, tokens.shape[1] - 1), tokens.shape)
        nll = HeadLoss(chunk=16).sum(hidden, projection, tokens, parents, mask)
        return LossSums(nll, mask.sum()).mean, projection.logits(hidden)

    (mean, logits), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return mean, logits, gradient


def their_step(pair, tokens, mask):
    """The same of transformers; the gradient by our paths."""
    pair.theirs.zero_grad()
    logits = pair.theirs(input_ids=torch.tensor(np.array(tokens), dtype=torch.long)).logits
    targets, weights = torch.tensor(np.array(tokens[:, 1:]), dtype=torch.long), torch.tensor(np.array(mask[:, 1:]))
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="none")
    mean = (nll * weights.flatten()).sum() / weights.sum()
    mean.backward()
    held = {name: parameter.grad for name, parameter in pair.theirs.named_parameters()}
    gradient = {path: part(held[source.name], source) for path, source in pair.tensor_slices.items()}
    return mean.item(), logits.detach().numpy(), gradient


def random_batch(vocab, rows=2, length=40, seed=0):
    """(tokens, response mask): random, the first token of a row never supervised."""
    rng = np.random.default_rng(seed)
    mask = (rng.random((rows, length)) < 0.7).astype(np.float32)
    mask[:, 0] = 0
    return jnp.array(rng.integers(0, vocab, (rows, length)), jnp.int32), jnp.array(mask)


def greedy(pair, prompts, count):
    """What transformers says after prompts, left-padded to one batch, and the smallest lead of a word over the next."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    pair.theirs.generation_config.eos_token_id = None  # else it stops where the family's config says
    said = pair.theirs.generate(
        input_ids=torch.tensor([[0] * n + prompt for n, prompt in zip(padding, prompts)]),
        attention_mask=torch.tensor([[0] * n + [1] * (longest - n) for n in padding]),
        generation_config=transformers.GenerationConfig(
            do_sample=False,
            max_new_tokens=count,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        ),
    )
    best = torch.stack(said.logits).topk(2).values
    return said.sequences[:, longest:].tolist(), (best[..., 0] - best[..., 1]).min().item()
