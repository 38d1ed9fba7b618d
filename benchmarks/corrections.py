"""`nth.infinite.corrections` beside sampled networks, over the width.

    python -m benchmarks corrections

At widths 64, 128 and 256 each statistic is compared with its mean over networks, in
standard errors. At widths 4 to 32, where the next order is resolved, the exponent of
the difference is fitted. Statistics of outputs are means over the last layer, given the
others.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import nth

from .record import Row

X = jnp.array([[0.6, 0.8, 0.0], [1.0, 0.0, 0.0], [0.5, -0.5, 0.7]])
PROBLEM = nth.Problem(X, jnp.zeros(3))
SIGMA_A = 1.2
OPTIONS: Any = {"activation": "tanh", "parameterization": "ntk"}
OPTIONS |= {"depth": 2, "sigma_w": 1.4, "sigma_a": SIGMA_A}
NAMES = ("nngp", "ntk", "outputs", "ntk_covariance", "ntk_output", "third", "fourth")


class Draws(NamedTuple):
    """Of each network: Σ̂, the covariance of outputs over the last layer a; K⁽²⁾ and
    K⁽⁴⁾; and derivatives along the gradients v of the outputs in a: ∂K⁽³⁾/∂v_d, whose
    mean is E K⁽³⁾ f_d, and ∂²K⁽²⁾/∂v_c∂v_d, since a is Gaussian (Stein's lemma)."""

    covariance: Any
    ntk: Any
    fourth: Any
    third: Any
    curvature: Any


def draws(width: int, samples: int) -> Draws:
    def of_key(key: jax.Array) -> Draws:
        network = nth.MLP(3, width, key=key, **OPTIONS)
        last = network.weights[-1]

        def changed(last: jax.Array) -> nth.MLP:
            return eqx.tree_at(lambda net: net.weights[-1], network, last)

        def kernel(order: int, last: jax.Array) -> jax.Array:
            network = changed(last)
            return nth.kernels(network, PROBLEM, order=order, progress=False)[order]

        def along(function: Any, v: jax.Array) -> Any:
            return lambda last: jax.jvp(function, (last,), (v,))[1]

        gradients = jax.jacfwd(lambda last: jax.vmap(changed(last))(X))(last)
        third = [along(partial(kernel, 3), v)(last) for v in gradients]
        second = [
            [along(along(partial(kernel, 2), v), w)(last) for w in gradients]
            for v in gradients
        ]
        return Draws(
            nth.nngp(network, PROBLEM, sigma_a=SIGMA_A),
            kernel(2, last),
            kernel(4, last),
            jnp.stack(third, axis=-1),
            jnp.stack([jnp.stack(row, axis=-1) for row in second], axis=-2),
        )

    run = jax.jit(lambda keys: jax.lax.map(of_key, keys, batch_size=20))
    size = min(samples, 5000)
    parts = [
        jax.tree.map(np.asarray, run(keys))
        for keys in jax.random.split(jax.random.key(width), (samples // size, size))
    ]
    return Draws(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def statistics(rows: Draws) -> dict[str, Any]:
    """Of each network, what has the statistic as its mean."""
    rest = rows.covariance - rows.covariance.mean(axis=0)
    ntk = rows.ntk - rows.ntk.mean(axis=0)
    fluctuation = np.einsum("zab,zcd->zabcd", rest, rest)
    first, second = (fluctuation.transpose(0, *a) for a in ((1, 3, 2, 4), (1, 3, 4, 2)))
    return {
        "nngp": rows.covariance,
        "ntk": rows.ntk,
        "outputs": fluctuation + first + second,
        "ntk_covariance": np.einsum("zab,zcd->zabcd", ntk, ntk),
        "ntk_output": np.einsum("zab,zcd->zabcd", ntk, rest) + rows.curvature,
        "third": rows.third,
        "fourth": rows.fourth,
    }


def compared(width: int, samples: int) -> dict[str, dict[str, float]]:
    found = nth.infinite.corrections(X, width=width, nodes=49, **OPTIONS)
    expected = (
        found.nngp + found.nngp_correction,
        found.ntk + found.ntk_correction,
        found.output_cumulant,
        found.ntk_covariance,
        found.ntk_output_covariance,
        found.third,
        found.fourth,
    )
    rows = statistics(draws(width, samples))
    row: dict[str, dict[str, float]] = {}
    for name, value in zip(NAMES, expected, strict=True):
        gap = rows[name].mean(axis=0) - np.asarray(value)
        error = rows[name].std(axis=0) / samples**0.5
        score = gap / error
        row[name] = {
            "rms_score": float(np.sqrt(np.mean(score**2))),
            "max_score": float(np.max(np.abs(score))),
            "difference": float(np.linalg.norm(gap)),
            "difference_error": float(np.linalg.norm(error)),
            "size": float(np.linalg.norm(value)),
        }
    return row


def exponent(narrow: dict[int, Any], name: str) -> tuple[float, float]:
    """The slope of log difference over log width, weighted, and its standard error."""
    widths = np.array(list(narrow))
    sizes = np.array([row[name]["difference"] for row in narrow.values()])
    errors = np.array([row[name]["difference_error"] for row in narrow.values()])
    weight = sizes / errors
    design = np.stack([np.ones_like(sizes), np.log(widths)], axis=1) * weight[:, None]
    slope = np.linalg.lstsq(design, np.log(sizes) * weight, rcond=None)[0][1]
    return float(slope), float(np.sqrt(np.linalg.inv(design.T @ design)[1, 1]))


def measure(small: bool) -> list[Row]:
    """Draws 40,000 networks at each width; writes their statistics to a file, too."""
    samples = 50 if small else 40_000
    wide = {
        width: compared(width, samples) for width in (64, 128, 256)[: 3 - 2 * small]
    }
    narrow = {width: compared(width, 4 * samples) for width in (4, 8, 16, 32)}
    if not small:
        record = {"samples": samples, "wide": wide, "narrow": narrow}
        Path("corrections.json").write_text(json.dumps(record, indent=1))
    return rows_of(wide, narrow)


def rows_of(wide: dict[int, Any], narrow: dict[int, Any]) -> list[Row]:
    rows: list[Row] = []
    for name in NAMES:
        row: Row = {"case": name}
        for width, statistics in wide.items():
            row[f"width {width}, rms deviation"] = statistics[name]["rms_score"]
            row[f"width {width}, largest"] = statistics[name]["max_score"]
        slope, error = exponent(narrow, name)
        rows.append({**row, "exponent": slope, "± (95 %)": 1.96 * error})
    return rows
