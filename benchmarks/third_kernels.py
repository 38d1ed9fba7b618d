"""K⁽³⁾ of a convolutional network and of attention, beside plain JAX.

    python -m benchmarks third_kernels

32 points and one output, compiled. The baseline is forward mode through the product of
the Jacobian with itself, along each row of the Jacobian. Both take turns, and the least
processor time of each counts, over all threads.
"""

from functools import partial

import equinox as eqx
import jax.numpy as jnp

import nth

from .against_neural_tangents import NETWORKS, inputs
from .discrete import in_turns
from .kernels import derivative_of_contraction, formed
from .record import Row


def row_of(name: str, n: int, dtype: str) -> Row:
    apply = NETWORKS[name][0]
    params, x = inputs({"network": name, "n": n, "outputs": 1, "dtype": dtype})
    network = nth.from_apply(lambda params, x: apply(params, x)[0], params)
    problem = nth.Problem(x, jnp.zeros(n, x.dtype))
    ours = partial(eqx.filter_jit(formed(3)), network, problem)
    plain = partial(eqx.filter_jit(derivative_of_contraction), network, x)
    times = in_turns({"nth": ours, "plain JAX": plain})
    kernel = ours()
    difference = jnp.max(jnp.abs(kernel - plain())) / jnp.max(jnp.abs(kernel))
    return {
        "case": f"{name}, n = {n}, {dtype}",
        **{f"{side}, CPU time (s)": seconds for side, seconds in times.items()},
        "plain JAX / nth": times["plain JAX"] / times["nth"],
        "difference": float(difference),
    }


def measure(small: bool) -> list[Row]:
    names, n = (("attention",), 4) if small else (("attention", "convolutional"), 32)
    dtypes = ("float64",) if small else ("float64", "float32")
    return [row_of(name, n, dtype) for name in names for dtype in dtypes]
