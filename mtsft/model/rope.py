"""Rotary position embeddings, and the ways to stretch them over longer contexts."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def rotary(
    positions_BxL: jax.Array, head_dim: int, theta: float, scaling: Mapping[str, Any] | None = None
) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of rotary position embeddings, each float32 (B, L, 1, head_dim / 2).

    RoFormer (Su et al. 2021, arXiv:2104.09864), equation 34, with frequencies theta^(-2i / head_dim).

    Args:
        positions_BxL: int32.
        head_dim: of a head, even.
        theta: the base of the frequencies.
        scaling: a rope_scaling of Hugging Face's configs; None for none.
    """
    frequencies, factor = rope_frequencies(head_dim, theta, scaling or {})
    angles = positions_BxL[..., None, None].astype(jnp.float32) * jnp.asarray(frequencies)[None, None, None, :]
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x_BxLxHxK: jax.Array, cos_sin: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates each pair (x[i], x[i + K / 2]) by its angle; the pairing of the Hugging Face Llama weights."""
    cos, sin = cos_sin
    first, second = jnp.split(x_BxLxHxK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxLxHxK.dtype)


def rope_frequencies(head_dim: int, theta: float, scaling: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    """Radians a position, float32 (head_dim / 2,), and what cos and sin are multiplied by.

    By the rope_type of `scaling`: "linear" interpolates positions (Chen et al. 2023, arXiv:2306.15595); "llama3" slows
    long wavelengths and keeps short ones (Llama 3.1, arXiv:2407.21783; smoothed as in Meta's reference code); "yarn" is
    of Peng et al. 2023, arXiv:2309.00071, sections 3.2 to 3.4.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # Powers that are rounded once: what they are off by is multiplied by the position.
    frequencies = 1 / (theta ** exponents.astype(np.float64)).astype(np.float32)
    kind, factor = scaling.get("rope_type", "default"), scaling.get("factor", 1.0)
    if kind == "linear":
        return frequencies / np.float32(factor), 1.0
    if kind == "llama3":
        return _llama3(frequencies, factor, scaling).astype(np.float32), 1.0
    if kind == "yarn":
        return _yarn(frequencies, head_dim, theta, factor, scaling).astype(np.float32), _yarn_attention(factor, scaling)
    return frequencies, 1.0


def _llama3(frequencies, factor: float, scaling: Mapping[str, Any]) -> np.ndarray:
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    # Over the original context; by the wavelength, as the reference rounds it.
    turns = scaling["original_max_position_embeddings"] / (2 * math.pi / frequencies)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return kept * frequencies + (1 - kept) * frequencies / factor


def _yarn(frequencies, head_dim: int, theta: float, factor: float, scaling: Mapping[str, Any]) -> np.ndarray:
    context = scaling["original_max_position_embeddings"]

    def index_of(turns: float) -> float:
        """The index of the frequency that makes so many turns over the original context."""
        return head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = index_of(scaling.get("beta_fast") or 32), index_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    slowed = np.clip((np.arange(head_dim // 2) - first) / max(last - first, 1e-3), 0, 1)
    return (1 - slowed) * frequencies + slowed * frequencies / factor


def _yarn_attention(factor: float, scaling: Mapping[str, Any]) -> float:
    """The temperature of YaRN's equation 22, folded into cos and sin; as DeepSeek has it where mscale is given."""

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return mscale(scaling["mscale"]) / mscale(scaling["mscale_all_dim"])
    return mscale(1.0)
