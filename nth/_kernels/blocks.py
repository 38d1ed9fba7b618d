"""Arrays that are filled block after block."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._internal.progress import delayed_bar
from .._internal.validation import is_traced

# (data, corner of a block, array) ↦ the array with that block filled
Fill = Callable[[Any, Int[Array, " axes"], Array], Array]


def filled_in_blocks(
    fill: Fill,
    data: Any,
    corners: Sequence[tuple[int, ...]],
    out: Float[Array, "..."],
    name: str,
    progress: bool,
) -> Float[Array, "..."]:
    """`out` with the blocks at `corners` filled: in place and with a progress bar, or
    in a loop if anything is traced."""
    if is_traced(data, out):
        table = jnp.asarray(corners)
        if len(corners) == 1:  # XLA runs convolutions in a loop on one core
            return fill(data, table[0], out)
        return jax.lax.fori_loop(
            0, len(corners), lambda i, out: fill(data, table[i], out), out
        )
    options: Any = {"iterable": corners, "leave": False, "disable": not progress}
    for corner in delayed_bar(desc=name, **options):
        out = _filled_in_place((fill, data, jnp.asarray(corner)), out)
        if progress and not is_traced(out):
            out.block_until_ready()
    return out


@eqx.filter_jit(donate="all-except-first")
def _filled_in_place(
    inputs: tuple[Fill, Any, Int[Array, " axes"]], out: Array
) -> Array:
    fill, data, corner = inputs
    return fill(data, corner, out)
