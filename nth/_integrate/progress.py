"""A progress bar for solves that take more than a few seconds."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Int
from tqdm.auto import tqdm

from .._internal.progress import delayed_bar
from .._internal.validation import is_traced

# The minimum number of seconds between two updates of a bar.
INTERVAL = 0.1
# The bars of running solves, by number.
_BARS: dict[int, tqdm] = {}
_NUMBER = jax.ShapeDtypeStruct((), jnp.int32)

_State = tuple[Int[Array, ""], Int[Array, ""]]


class DelayedProgressMeter(diffrax.AbstractProgressMeter[_State]):
    """A bar with the fraction of the time reached, shown after a delay."""

    label: str = eqx.field(static=True)
    refresh_steps: int = eqx.field(static=True, default=50)

    def init(self) -> _State:
        return io_callback(self._open, _NUMBER), jnp.zeros((), jnp.int32)

    def step(self, state: _State, progress: Any) -> _State:
        number, steps = state

        def move(number: Array) -> Array:
            # The number is returned, so that these calls run in order.
            return jax.pure_callback(_move, _NUMBER, number, jnp.asarray(progress))

        due = steps % self.refresh_steps == 0
        return jax.lax.cond(due, move, lambda number: number, number), steps + 1

    def close(self, state: _State) -> None:
        io_callback(_close, None, state[0])

    def _open(self) -> np.ndarray:
        number = max(_BARS, default=0) + 1
        _BARS[number] = fraction_bar(1.0, self.label)
        return np.asarray(number, np.int32)


def fraction_bar(total: float, label: str, disable: bool = False) -> tqdm:
    """A bar that shows a fraction of `total`."""
    template = "{desc}: {percentage:.1f}%|{bar}| {elapsed}<{remaining}{postfix}"
    return delayed_bar(
        total=total,
        desc=label,
        bar_format=template,
        mininterval=INTERVAL,
        miniters=0,
        leave=False,
        disable=disable,
    )


def _move(number: Any, progress: Any) -> np.ndarray:
    bar = _BARS.get(int(number))
    if bar is not None:
        bar.update(float(progress) - bar.n)
    return np.asarray(number, np.int32)


def _close(number: Any) -> None:
    bar = _BARS.pop(int(number), None)
    if bar is not None:
        bar.update(bar.total - bar.n)
        bar.close()


def as_meter(
    progress: bool | diffrax.AbstractProgressMeter, label: str, arrays: Any
) -> diffrax.AbstractProgressMeter:
    """The diffrax meter for the option `progress`; `arrays` are those of the solve."""
    if isinstance(progress, diffrax.AbstractProgressMeter):
        return progress
    devices = {
        device
        for leaf in jax.tree.leaves(arrays)
        if isinstance(leaf, jax.Array) and not is_traced(leaf)
        for device in leaf.sharding.device_set
    }
    # A bar under a transformation, or on several devices, would be drawn several times.
    once = len(devices) <= 1 and not is_traced(arrays, jnp.zeros(()))
    if progress and once and _has_callbacks():
        return DelayedProgressMeter(label)
    return diffrax.NoProgressMeter()


def _has_callbacks() -> bool:
    """Whether there is a CPU device, which JAX needs for the arguments of callbacks:
    `JAX_PLATFORMS=cuda` leaves none."""
    try:
        return bool(jax.local_devices(backend="cpu"))
    except RuntimeError:
        return False
