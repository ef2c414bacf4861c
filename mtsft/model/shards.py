"""Which part of a computation each device has."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


@dataclass(frozen=True)
class Shards:
    """Rows of a batch are cut over some axes of a mesh; heads and vocabulary over another, where it divides them.

    The compiler cuts what it understands; `each` is for what it cannot, such as kernels and loops whose length depends
    on the rows.

    Attributes:
        mesh: None where one device computes everything, or each device computes rows of its own, as under pmap.
        rows: the axes of the mesh that rows are cut over, the last of which parameters are cut over as well.
        tensor: the axis that heads and vocabulary are cut over; None for none.
    """

    mesh: Mesh | None = None
    rows: tuple[str, ...] = ()
    tensor: str | None = None

    def constrain(self, x_BxLxD: jax.Array) -> jax.Array:
        """Pins activations to the devices of their rows."""
        if self.mesh is None:
            return x_BxLxD
        return jax.lax.with_sharding_constraint(x_BxLxD, NamedSharding(self.mesh, P(self.rows, None, None)))

    def tensor_axis(self, *sizes: int) -> str | None:
        """The axis that arrays of these sizes are cut over; None where it does not divide one of them."""
        return self._dividing(self.tensor, sizes)

    def params_axis(self, *sizes: int) -> str | None:
        """The axis of the rows that parameters of these sizes are cut over; None where it does not divide one."""
        return self._dividing(self.rows[-1] if self.rows else None, sizes)

    def _dividing(self, axis: str | None, sizes: tuple[int, ...]) -> str | None:
        if self.mesh is None or axis is None or any(size % self.mesh.shape[axis] for size in sizes):
            return None
        return axis

    def each(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """`function` of each device's own parts, as `jax.shard_map` has it; all of it where there is no mesh.

        Args:
            function: of local arrays; collectives name axes of the mesh.
            in_specs: a PartitionSpec for each argument, or a tree of them.
            out_specs: the same of what it returns.
        """
        if self.mesh is None:
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


ONE_DEVICE = Shards()
