"""The tensors of a Hugging Face folder, and the parameters that they hold.

Names are those of transformers' modules, models/*/modeling_*.py.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mtsft.interop.families import Family


class TensorSlice(NamedTuple):
    """Where one of our parameters is in a file.

    Attributes:
        name: of the tensor.
        rows: the range of axis 0 that it is, in a tensor that fuses several; None for all.
        transposed: whether the file keeps it as (out, in), where we have (in, out).
    """

    name: str
    rows: tuple[int, int] | None = None
    transposed: bool = False


def tensor_slices(family: Family, fields: Mapping[str, Any]) -> dict[tuple, TensorSlice]:
    """Where each parameter of the decoder is in the files, by its path in the unrolled layout.

    Names are those that models of the family are published with; `standard_name` turns others into them.
    """
    prefix = "language_model.model." if family.inner else "model."
    embedding, head = tied_names(family)
    slices = {("embed", "embedding"): TensorSlice(embedding), ("norm", "scale"): TensorSlice(f"{prefix}norm.weight")}
    if not fields["tie_word_embeddings"]:
        slices["head", "kernel"] = TensorSlice(head, None, True)
    for index in range(fields["num_hidden_layers"]):
        for path, tensor_slice in _layer_slices(family, fields).items():
            slices["layers", index, *path] = tensor_slice._replace(name=f"{prefix}layers.{index}.{tensor_slice.name}")
    return slices


def tied_names(family: Family) -> tuple[str, str]:
    """The names of the embedding and of the head: of a tied model, two for one tensor."""
    outer = "language_model." if family.inner else ""
    return f"{outer}model.embed_tokens.weight", f"{outer}lm_head.weight"


def _layer_slices(family: Family, fields: Mapping[str, Any]) -> dict[tuple, TensorSlice]:
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if fields["post_norms"]:
        norms |= {
            "mlp_norm": "pre_feedforward_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "post_mlp_norm": "post_feedforward_layernorm",
        }
    slices = {(ours, "scale"): TensorSlice(f"{theirs}.weight") for ours, theirs in norms.items()}
    if fields["qk_norm"]:
        slices["attention", "query_norm", "scale"] = TensorSlice("self_attn.q_norm.weight")
        slices["attention", "key_norm", "scale"] = TensorSlice("self_attn.k_norm.weight")
    H, G, K = (fields[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    F = fields["intermediate_size"]
    matrices = {
        ("attention", "query"): ("self_attn", "q_proj", "qkv_proj", 0, H * K, "attention_bias"),
        ("attention", "key"): ("self_attn", "k_proj", "qkv_proj", H * K, G * K, "attention_bias"),
        ("attention", "value"): ("self_attn", "v_proj", "qkv_proj", (H + G) * K, G * K, "attention_bias"),
        ("attention", "output"): ("self_attn", "o_proj", None, 0, 0, "attention_output_bias"),
        ("mlp", "gate"): ("mlp", "gate_proj", "gate_up_proj", 0, F, "mlp_bias"),
        ("mlp", "up"): ("mlp", "up_proj", "gate_up_proj", F, F, "mlp_bias"),
        ("mlp", "down"): ("mlp", "down_proj", None, 0, 0, "mlp_bias"),
    }
    for path, (part, name, fused, first, count, bias) in matrices.items():
        if family.fused and fused:
            slices[*path, "kernel"] = TensorSlice(f"{part}.{fused}.weight", (first, first + count), True)
        else:
            slices[*path, "kernel"] = TensorSlice(f"{part}.{name}.weight", None, True)
        if fields[bias]:
            slices[*path, "bias"] = TensorSlice(f"{part}.{name}.bias")
    return slices


def standard_name(family: Family, name: str) -> str:
    """The name by which `tensor_slices` knows a tensor of a file: a multimodal Gemma 3 has newer ones."""
    if not family.inner:
        return name
    name = re.sub(r"\A(model\.)?language_model\.(model\.)?(?!lm_head)", "language_model.model.", name)
    return re.sub(r"\Alm_head\.", "language_model.lm_head.", name)


def ignored(family: Family, fields: Mapping[str, Any]) -> re.Pattern:
    """A pattern of the whole names of tensors that a folder may hold besides, and that are not read."""
    names = [r"(.*\.)?rotary_emb\.\w*inv_freq"]
    if fields["tie_word_embeddings"]:
        names.append(re.escape(tied_names(family)[1]))
    if family.inner:
        names.append(r"(model\.)?(vision_tower|multi_modal_projector)\..*")
    return re.compile(rf"\A(?:{'|'.join(names)})\Z")
