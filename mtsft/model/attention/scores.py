"""How queries and keys make scores."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Scores:
    """Scores in float32: scale q.k, softly capped.

    Attributes:
        scale: what products are multiplied by.
        softcap: scores stay within +- this; 0 for no cap.
    """

    scale: float
    softcap: float = 0.0

    def __call__(self, query_BxLxGxRxK, key_BxSxGxK) -> jax.Array:
        """Of queries and keys, (B, G, R, L, S)."""
        return self.of(
            jnp.einsum("blgrk,bsgk->bgrls", query_BxLxGxRxK, key_BxSxGxK, preferred_element_type=jnp.float32)
        )

    def of(self, products: jax.Array) -> jax.Array:
        """Of products q.k in float32, of any shape."""
        return soft_cap(products * self.scale, self.softcap)


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
    """cap tanh(x / cap), or x where cap is 0 (Gemma 2, arXiv:2408.00118, section 2)."""
    return cap * jnp.tanh(x / cap) if cap else x
