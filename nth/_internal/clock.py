"""Times, and steps of an optimizer, which are integers."""

from typing import Any, Literal

import jax.numpy as jnp


def clock_of(ts: Any) -> Literal["time", "step"]:
    """Whether `ts` holds times or steps of an optimizer."""
    return "step" if jnp.issubdtype(ts.dtype, jnp.integer) else "time"
