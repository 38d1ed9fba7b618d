"""The means of `nth.infinite.corrections` beside those given the first hidden layer.

    python -m benchmarks corrections_given_layer

With two hidden layers E f f and E K⁽²⁾ given the first are Gaussian integrals that
depend on averages over its neurons. Their expansion to second order about the means of
these averages has a known mean, and is the control variate: only the rest is sampled.
The rows are the difference from the corrections and its exponent in the width.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nth

from .corrections import OPTIONS, SIGMA_A, X, exponent
from .record import Row

C = OPTIONS["sigma_w"] ** 2
FIRST = C / 3 * X @ X.T  # Σ and Θ of the first layer
LINE = jnp.linspace(-7, 7, 51)
WEIGHTS = jnp.exp(-(LINE**2) / 2) / jnp.sum(jnp.exp(-(LINE**2) / 2))
PAIRS = [(0, 1), (0, 2), (1, 2)]


def slopes(z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first three derivatives of tanh."""
    value = jnp.tanh(z)
    slope = 1 - value**2
    return slope, -2 * value * slope, slope * (6 * value**2 - 2)


def mean(values: jax.Array) -> jax.Array:
    return WEIGHTS @ values @ WEIGHTS


def of_neurons(u: jax.Array, v: jax.Array, ntk: jax.Array) -> jax.Array:
    """What is averaged over neurons with inputs u and v at the two points."""
    products = [jnp.tanh(a) * jnp.tanh(b) for a, b in ((u, u), (u, v), (v, v))]
    chain = slopes(u)[0] * slopes(v)[0] * ntk
    return jnp.stack(
        [*[C * p for p in products], chain, *[chain * p for p in products]]
    )


def given_averages(averages: jax.Array, width: Any) -> jax.Array:
    """E f f and E K⁽²⁾ at two points."""
    aa, ab, bb, chain, *quadratic = averages
    u = jnp.sqrt(aa) * LINE[:, None] + 0 * LINE
    along = ab / jnp.sqrt(aa)
    v = along * LINE[:, None] + jnp.sqrt(bb - along**2) * LINE
    (u1, u2, u3), (v1, v2, v3) = slopes(u), slopes(v)
    curvature = mean(u3 * v1), 2 * mean(u2 * v2), mean(u1 * v3)
    bent = sum(q * g for q, g in zip(quadratic, curvature, strict=True))
    neuron = mean(u1 * v1) * (ab + C * chain) + C**2 * bent / width
    outputs = mean(jnp.tanh(u) * jnp.tanh(v))
    return SIGMA_A**2 * jnp.stack([outputs, outputs + neuron])


def differences(
    pair: tuple[int, int], width: int, samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """E f f and E K⁽²⁾ minus those of the corrections, and standard errors."""
    block = FIRST[np.ix_(pair, pair)]
    root = jnp.linalg.cholesky(block)
    u = root[0, 0] * LINE[:, None] + 0 * LINE
    v = root[1, 0] * LINE[:, None] + root[1, 1] * LINE
    parts = of_neurons(u, v, block[0, 1])
    center = jax.vmap(mean)(parts)
    rest = parts - center[:, None, None]
    covariance = jnp.einsum("x,y,ixy,jxy->ij", WEIGHTS, WEIGHTS, rest, rest)
    slope = jax.jit(jax.jacfwd(given_averages))(center, width)
    bend = jax.jit(jax.hessian(given_averages))(center, width)
    start = given_averages(center, width)

    def of_key(key: jax.Array) -> jax.Array:
        z = root @ jax.random.normal(key, (2, width))
        moved = jnp.mean(of_neurons(z[0], z[1], block[0, 1]), axis=1)
        change = moved - center
        second = start + slope @ change + (bend @ change) @ change / 2
        return given_averages(moved, width) - second

    keys = jax.random.split(jax.random.key(width), samples)
    draws = jax.jit(lambda keys: jax.lax.map(of_key, keys, batch_size=50))(keys)
    found = nth.infinite.corrections(X, width=width, nodes=49, **OPTIONS)
    law = found.nngp + found.nngp_correction, found.ntk + found.ntk_correction
    known = start + jnp.einsum("kij,ij->k", bend, covariance) / 2 / width
    gap = known + jnp.mean(draws, axis=0) - jnp.stack([part[pair] for part in law])
    return np.asarray(gap), np.asarray(jnp.std(draws, axis=0)) / samples**0.5


def measure(small: bool) -> list[Row]:
    samples = 200 if small else 40_000
    rows: dict[int, Any] = {}
    for width in (4, 8, 16, 32):
        parts = [differences(pair, width, samples) for pair in PAIRS]
        gaps, errors = (np.array(part) for part in zip(*parts, strict=True))
        rows[width] = {
            name: {
                "difference": float(np.linalg.norm(gaps[:, k])),
                "difference_error": float(np.linalg.norm(errors[:, k])),
            }
            for k, name in enumerate(("nngp", "ntk"))
        }
    return [row_of(name, rows) for name in ("nngp", "ntk")]


def row_of(name: str, rows: dict[int, Any]) -> Row:
    slope, error = exponent(rows, name)
    at = {f"width {width}": row[name]["difference"] for width, row in rows.items()}
    return {"case": name, **at, "exponent": slope, "± (95 %)": 1.96 * error}
