"""From hidden states to logits."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from mtsft.model.attention.scores import soft_cap
from mtsft.model.vocabulary import without_padding


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Projection:
    """A head, or an embedding that is one as well; a pytree of its arrays.

    Attributes:
        kernel: (D, V), or (V, D) of an embedding, in the parameter dtype, with what padding there is behind the
            vocabulary. It is computed with in the dtype of hidden states.
        apart: (ids_T, columns_DxT) of tokens, int32, and the columns that stand in for theirs, which are kept apart so
            that their gradient is formed without that of the rest; None for none.
        is_embedding: whether the kernel is (V, D).
        vocab_size: tokens.
        softcap: logits stay within +- this; 0 for no cap.
    """

    kernel: jax.Array
    apart: tuple[jax.Array, jax.Array] | None = None
    is_embedding: bool = field(default=False, metadata=dict(static=True))
    vocab_size: int = field(metadata=dict(static=True))
    softcap: float = field(default=0.0, metadata=dict(static=True))

    @property
    def axes(self) -> tuple[int, int]:
        """Which axes of the kernel are of D and of V."""
        return (1, 0) if self.is_embedding else (0, 1)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Of hidden states (..., D), float32 (..., V), capped; those of padding are minus infinity."""
        logits = contract(hidden, self.kernel.astype(hidden.dtype), hidden.ndim - 1, self.axes[0])
        if self.apart is not None:
            ids_T, columns_DxT = self.apart
            own = contract(hidden, columns_DxT.astype(hidden.dtype), hidden.ndim - 1, 0)
            logits = logits.at[..., ids_T].set(own)
        return without_padding(self.cap(logits), self.vocab_size)

    def cap(self, logits: jax.Array) -> jax.Array:
        """Logits of any shape, softly capped."""
        return soft_cap(logits, self.softcap)


def contract(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    """a b over one axis of each, added up and given in float32; what is left of their axes, those of a first."""
    dimensions = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)
