"""K⁽³⁾ of any network from second derivatives of each output.

With S_a[b, c] = ∇f_b M H_a M ∇f_c,

    K⁽³⁾[a, b, c] = S_a[b, c] + S_b[a, c],

where S_a takes one point and the directions of all slots. It needs no derivatives of
backward passes, as the gradients do. It is used where it takes fewer multiplications
than these, and where the gradients and the kernel fit in blocks of memory.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._custom_types import Inputs, Params
from .._network.learning_rates import by_rates
from .._problem.inputs import count, join
from .evaluation import Points, forward_cost
from .factored_gradients import GradientFunction
from .hierarchy_operator import TensorFunction
from .jacobian import jacobian_of
from .local_derivatives import SecondDerivatives

# Maximum bytes of the gradients, and of K⁽³⁾.
_MOST_BYTES = 2**28
# Maximum bytes held for the points processed at once: more leave the cache.
_BLOCK_BYTES = 2**23
# Time of reading a number of a direction, in multiplications: measured for dense layers
# that act at one position, whose gradients are best left factored.
_READING = 3


def points_at_once(points: Points, r: int) -> int:
    """The number of points whose second derivatives are computed at once for K⁽³⁾,
    r − 3 times differentiated; 0 where another way takes less time, or they do not fit
    in memory."""
    second = SecondDerivatives(points)
    directions = points.output.size * (points.n_train + count(points.x_extra))
    directions <<= r - 3  # each derivative doubles what is held
    itemsize = points.output.dtype.itemsize
    held = directions * itemsize * max(points.n_params, points.n_slots**2)
    each = directions * second.bytes_per_direction()
    if max(held, each) > _MOST_BYTES or not second.is_real:
        return 0
    by_gradients, local = third_costs(points, second)
    if local > by_gradients:
        return 0
    # A convolution by different weights at each point and along each direction is slow.
    return 1 if second.has_convolutions else max(1, _BLOCK_BYTES // each)


def third_costs(points: Points, second: SecondDerivatives) -> tuple[int, int]:
    """Multiplications of K⁽³⁾ for each slot and point: from derivatives of gradients,
    and from `second` derivatives of outputs."""
    size, forward = points.output.size, forward_cost(points)
    gradients = GradientFunction(points, points.n_train)
    passes = 2 * (1 + size) * forward + 2 * size * gradients.forming_per_point()
    by_gradients = passes + points.n_train * gradients.products_per_pair()
    products = size * points.n_slots * second.n_paired
    local = (2 + size) * forward + products + _READING * points.n_params
    return by_gradients, local


class LocalThird(eqx.Module):
    """Columns of K⁽³⁾; `together` is the number of points processed at once."""

    together: int = eqx.field(static=True)

    def __call__(
        self, points: Points, start: Int[Array, ""], size: int
    ) -> Float[Array, "rows slots columns"]:
        tensor = self.tensor(points)(points.params)
        return jax.lax.dynamic_slice_in_dim(tensor, start, size, axis=2)

    def tensor(self, points: Points) -> TensorFunction:
        """θ ↦ K⁽³⁾."""
        return lambda params: _third(points, params, self.together)


def _third(
    points: Points, params: Params, together: int
) -> Float[Array, "rows slots slots"]:
    second, n_slots = SecondDerivatives(points), points.n_slots
    x = join(points.x_train, points.x_extra)
    gradients = jax.vmap(jacobian_of(points.apply, params))(x)
    rated = jax.vmap(jax.vmap(partial(by_rates, points.rates)))(gradients)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rated)

    def at(xs: Inputs, directions: Params) -> Float[Array, "outputs directions slots"]:
        """S at each output of `xs`."""
        one = partial(second, params, directions=directions, n_second=n_slots)
        parts = jax.lax.map(one, xs, batch_size=min(together, count(xs)))
        return parts.reshape(-1, *parts.shape[2:])

    of_train = at(points.x_train, flat)
    trained, extra = of_train[:, :n_slots], of_train[:, n_slots:]
    parts = []
    if points.with_train:
        parts.append(trained + jnp.swapaxes(trained, 0, 1))
    if count(points.x_extra):
        directions = jax.tree.map(lambda leaf: leaf[:n_slots], flat)
        own = at(points.x_extra, directions)
        parts.append(own + jnp.swapaxes(extra, 0, 1))
    return jnp.concatenate(parts)
