"""Random keys for fresh parameters."""

import jax


class InitKeys:
    """Two streams of keys, adapters' apart, so that the base is drawn the same with and without adapters.

    The n-th key of a stream is its own key with n folded in, as flax.nnx.Rngs has it; counted in Python, as a count
    that is traced costs time that grows with the square of the number of layers (JAX looks for where it came from).

    Args:
        key: of both.
    """

    def __init__(self, key: jax.Array):
        self._keys = {"params": key, "lora": jax.random.fold_in(key, 1)}
        self._given = dict.fromkeys(self._keys, 0)

    def params(self) -> jax.Array:
        """The next key for a parameter of the base."""
        return self._next("params")

    def lora(self) -> jax.Array:
        """The next key for one of an adapter."""
        return self._next("lora")

    def _next(self, name: str) -> jax.Array:
        self._given[name] += 1
        return jax.random.fold_in(self._keys[name], self._given[name] - 1)
