"""What a decoder is: sizes, conventions and numerics, as data."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from mtsft.errors import InputError, one_line
from mtsft.model.attention.kernels import AUTO, KERNELS
from mtsft.model.fp8 import fp8_matmul
from mtsft.model.matmul import matmul
from mtsft.model.remat import REMAT_POLICIES

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
MATMULS = {"plain": matmul, "fp8": fp8_matmul}
ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
LAYER_TYPES = ("full", "sliding")
_MAY_BE_0 = (
    "sliding_window",
    "max_position_embeddings",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "rope_local_theta",
)
ROPE_TYPES = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
# Further keys of yarn, each a number above 0; "truncate" is one as well.
YARN_OPTIONS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
# The fields of an Architecture that say how it is computed, not what is computed, and what they are unless a config
# says otherwise. No published config has them, and a run may change all but param_dtype.
RUNTIME: dict[str, Any] = {
    "dtype": "float32",
    "param_dtype": "float32",
    "scan_layers": None,
    "remat": "dots_no_batch",
    "matmul": "plain",
    "attention_kernel": AUTO,
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes, conventions and numerics, under the names of Hugging Face's configs; config.py says what each means.

    The families of decoders differ in these values alone.

    Raises:
        InputError: for values that make no model.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    hidden_act: str
    rms_norm_eps: float
    zero_centered_norms: bool
    post_norms: bool
    qk_norm: bool
    attention_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    query_pre_attn_scalar: float
    attn_logit_softcapping: float
    final_logit_softcapping: float
    scale_embeddings: bool
    sliding_window: int
    layer_types: str
    rope_theta: float
    rope_scaling: str
    rope_local_theta: float
    tie_word_embeddings: bool
    initializer_range: float
    dtype: str
    param_dtype: str
    scan_layers: bool | None
    remat: str
    matmul: str
    attention_kernel: str

    def __post_init__(self):
        for name, value in vars(self).items():
            may_be_0 = name in _MAY_BE_0
            if type(value) is int and value < (not may_be_0):
                raise InputError(f"model.{name}={value}: must be at least {int(not may_be_0)}")
            if type(value) is float and not (value > 0 or (may_be_0 and value == 0)):
                raise InputError(f"model.{name}={value}: must be {'at least' if may_be_0 else 'above'} 0")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"model.num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"model.num_key_value_heads={self.num_key_value_heads}; each key-value head serves as many heads"
            )
        if self.head_dim % 2:
            raise InputError(f"model.head_dim={self.head_dim}: rotary positions turn pairs, so it must be even")
        tables = {
            "remat": REMAT_POLICIES,
            "matmul": MATMULS,
            "dtype": DTYPES,
            "param_dtype": DTYPES,
            "hidden_act": ACTIVATIONS,
            "attention_kernel": (AUTO, *KERNELS),
        }
        for name, table in tables.items():
            if getattr(self, name) not in table:
                raise InputError(f"model.{name}={getattr(self, name)!r}: use one of {', '.join(table)}")
        if any(kind not in LAYER_TYPES for kind in self.layer_types.split(",")):
            raise InputError(
                f"model.layer_types={self.layer_types!r}: write the kinds of attention that the layers repeat, "
                'each "full" or "sliding", as "sliding,full"'
            )
        if any(self.slides) and not self.sliding_window:
            raise InputError(f"model.layer_types={self.layer_types!r} slides: set model.sliding_window to its tokens")
        if fault := rope_fault(self.rope):
            raise InputError(f"model.rope_scaling {fault}")

    @cached_property
    def slides(self) -> tuple[bool, ...]:
        """For each layer, whether its attention is over a sliding window."""
        pattern = self.layer_types.split(",")
        return tuple(pattern[i % len(pattern)] == "sliding" for i in range(self.num_hidden_layers))

    @cached_property
    def rope(self) -> dict[str, Any]:
        """rope_scaling as a dict, with its rope_type."""
        try:
            scaling = json.loads(self.rope_scaling or "{}")
        except ValueError:
            scaling = None
        if not isinstance(scaling, dict):
            raise InputError(
                f"model.rope_scaling={self.rope_scaling!r}: write one JSON object, such as "
                '\'{"rope_type": "linear", "factor": 4.0}\''
            )
        return {"rope_type": "default", **scaling}

    def positions_after(self, length: int, wanted: int) -> int:
        """How many of `wanted` more positions are left after `length`; all where there is no maximum."""
        positions = self.max_position_embeddings
        return max(0, min(wanted, positions - length)) if positions else wanted

    @property
    def attention_scale(self) -> float:
        """What attention scores are multiplied by."""
        return (self.query_pre_attn_scalar or self.head_dim) ** -0.5


def rope_fault(scaling: Mapping[str, Any]) -> str:
    """What is wrong with a rope_scaling, its rope_type among it; "" for nothing."""
    kind = scaling["rope_type"]
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        supported = ", ".join(ROPE_TYPES)
        return f"has the rope_type {one_line(repr(kind), 60)}, which is not supported; {supported} are"
    options = [name for name in YARN_OPTIONS if kind == "yarn" and scaling.get(name) is not None]
    for name in (*ROPE_TYPES[kind], *options):
        value = scaling.get(name)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            return f"has the {name} {one_line(repr(value), 60)}; a rope_type {kind!r} needs a number above 0"
    if kind == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        return "has a low_freq_factor that is not below its high_freq_factor"
    if kind == "yarn" and (scaling.get("beta_fast") or 32) < (scaling.get("beta_slow") or 1):
        return "has a beta_fast below its beta_slow"
    return ""
