"""Calibration of `Solution.error_estimate` on random problems.

    python -m benchmarks error_estimate    # about 20 minutes

Each problem has 6 training and 4 test points in 5 dimensions, 2 outputs, a width from 4
to 1,024, 1 to 3 hidden layers, one of six activations, three losses and three
parameterizations, and ten times up to a last one from 0.1 to 100,000. Each level is
compared with the trained network. Results are added to `error_estimate.json` after each
problem, and a later run resumes from the file.

For the problems with odd seeds (the factors in `nth/_dynamics/truncation.py`
were chosen on those with even seeds), over all times before `valid_until`:

- the area under the ROC curve of the estimate over the predicted change, for errors of
  more than 10 % of the change of the trained network;
- the median of error over estimate where the error exceeds 1e-3;
- the share of (run, time) pairs whose error exceeds three estimates plus 1e-3 of the
  output scale;
- the share of runs that are wrong by more than 50 % at some time where neither the
  window was left nor the estimate exceeds 30 % of the predicted change.

Draws error_estimate.png.
"""

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

import nth
from nth._dynamics.truncation import last_term_factors

from .record import Row

TRAIN, TEST, SIZE, OUTPUTS = 6, 4, 5, 2
# (width, depth) and its probability: few shapes, since compilation takes most time.
SHAPES = {
    (4, 1): 0.13,
    (4, 2): 0.13,
    (16, 1): 0.14,
    (16, 3): 0.14,
    (64, 2): 0.14,
    (64, 1): 0.10,
    (256, 1): 0.07,
    (256, 2): 0.08,
    (1024, 1): 0.05,
    (1024, 2): 0.02,
}
ORDERS = (2, 3, 4)


class Network(eqx.Module):
    """A network whose activation and scales are arrays, so that it compiles once."""

    weights: tuple[jax.Array, ...]
    activation: jax.Array
    scales: jax.Array

    def __call__(self, x):
        for i, w in enumerate(self.weights):
            x = self.scales[i, 0] * (w @ x)
            if i < len(self.weights) - 1:
                s = jax.nn.sigmoid(x)
                gelu = 0.5 * x * (1 + jax.lax.erf(x / np.sqrt(2)))
                values = (jnp.tanh(x), jax.lax.erf(x), gelu, s - 0.5, jnp.sin(x), x * s)
                chosen = sum(self.activation[j] * v for j, v in enumerate(values))
                x = self.scales[i, 1] * chosen
        return x


class AnyLoss(nth.AbstractLoss):
    """The squared error, the logistic loss or the cross-entropy, by one-hot weights."""

    weights: jax.Array

    def check_targets(self, targets, dtype):
        return targets

    def check_outputs(self, targets, output):
        return targets

    def pointwise(self, output, target):
        signs = jnp.sign(target)
        shares = (signs + 1) / 2
        squared = 0.5 * jnp.sum((output - target) ** 2)
        logistic = jnp.sum(jnp.logaddexp(0.0, -output * signs))
        normalizer = jnp.sum(shares) * jax.nn.logsumexp(output)
        losses = [squared, logistic, normalizer - jnp.sum(shares * output)]
        return self.weights @ jnp.stack(losses)


class Terms(eqx.Module):
    """A `save_fn` whose arrays are arguments of the compiled function."""

    hierarchy: nth.MatrixFreeHierarchy

    def __call__(self, t, state, args):
        return self.hierarchy.output_terms(state)


def layers(rng, width, depth, kind, sigma):
    """Weights, and the scales of each layer before and after its activation."""
    sizes = [SIZE, *[width] * depth, OUTPUTS]
    weights, scales = [], []
    for i in range(depth + 1):
        fan_in, fan_out = sizes[i : i + 2]
        w, s = rng.normal(size=(fan_out, fan_in)), sigma if i < depth else 1.0
        if kind == 0:  # "nth"
            weights.append(w * s)
            scales.append((1.0, width**-0.5))
        elif kind == 1:  # "ntk"
            weights.append(w)
            scales.append((s * fan_in**-0.5, 1.0))
        else:  # "standard"
            weights.append(w * s * fan_in**-0.5)
            scales.append((1.0, 1.0))
    return tuple(map(jnp.asarray, weights)), jnp.asarray(scales)


def problem_of(seed):
    """(network, problem, options, times, description) of one random problem."""
    rng = np.random.default_rng(seed)
    width, depth = list(SHAPES)[rng.choice(len(SHAPES), p=list(SHAPES.values()))]
    activation, loss, kind = (int(rng.integers(k)) for k in (6, 3, 3))
    last = 10 ** rng.uniform(-1, 5)
    if width >= 256:
        last = min(last, 10 ** rng.uniform(-1, 4))
    scale, sigma = 10 ** rng.uniform(-0.5, 0.7), rng.choice([1.0, 1.5])
    x = rng.normal(size=(TRAIN + TEST, SIZE))
    x *= 10 ** rng.uniform(-0.3, 0.3) / np.linalg.norm(x, axis=1, keepdims=True)
    labels = rng.integers(OUTPUTS, size=TRAIN)
    y = np.where(np.arange(OUTPUTS)[None] == labels[:, None], 1.0, -1.0)
    y = y * scale if loss == 0 else y
    weights, scales = layers(rng, width, depth, kind, sigma)
    network = Network(weights, jnp.eye(6)[activation], scales)
    frozen = jax.tree.map(lambda _: False, network)
    trained = jax.tree.map(lambda _: True, network.weights)
    options = {
        "filter_spec": eqx.tree_at(lambda n: n.weights, frozen, trained),
        "learning_rates": jnp.asarray(1 / width if kind == 2 else 1.0),
    }
    data = nth.Problem(x[:TRAIN], y, x[TRAIN:], loss=AnyLoss(jnp.eye(3)[loss]))
    description: dict[str, Any] = {
        "width": width,
        "depth": depth,
        "activation": activation,
        "loss": loss,
    }
    description |= {"parameterization": kind, "last": last}
    return network, data, options, last * np.geomspace(1e-3, 1, 10), description


def rms(values):
    return np.sqrt(np.mean(np.asarray(values) ** 2, axis=(-1, -2)))


def solve(dynamics, ts, **options: Any):
    controller = diffrax.PIDController(
        rtol=1e-5, atol=1e-7, norm=dynamics.error_norm, dtmin=1e-9
    )
    solution = nth.integrate(
        dynamics,
        ts,
        solver=nth.ROCK4(),
        stepsize_controller=controller,
        max_steps=4000,
        progress=False,
        throw=False,
        **options,
    )
    return solution, np.concatenate([solution.train, solution.test], axis=1)


def run(seed):
    """Errors, changes and estimates of one problem."""
    network, data, options, ts, drawn = problem_of(seed)
    result: dict[str, Any] = dict(drawn)
    _, truth = solve(nth.GradientFlow(network, data, **options), ts)
    result["times"] = list(ts)
    for p in ORDERS:
        dynamics = nth.MatrixFreeHierarchy(network, data, order=p, **options)
        solution, outputs = solve(dynamics, ts, save_fn=Terms(dynamics))
        terms = np.asarray(solution.saved)
        last = rms(terms[:, -1])
        if p > 2:
            sizes = jnp.asarray(rms(terms[:, 1])), jnp.asarray(rms(terms[:, 2]))
            last = np.asarray(last_term_factors(p, *sizes)) * last
        else:  # both forms compute the same estimate
            last = np.asarray(solution.error_estimate)
        start = terms[:1, 0]
        result[f"p{p}"] = {
            "error": list(rms(outputs - truth)),
            "change": list(rms(truth - start)),
            "predicted": list(np.maximum.accumulate(rms(outputs - start))),
            "scale": float(rms(truth[-1])),
            "matrix-free": list(np.asarray(solution.error_estimate)),
            "dense": list(last),
            "valid_until": float(solution.valid_until),
        }
    return result


def area_under_curve(score, positive):
    ranks, count = rankdata(score), np.sum(positive)
    smallest = count * (count + 1) / 2
    return (np.sum(ranks[positive]) - smallest) / (count * (len(score) - count))


def pairs(results, order, form, parity=1):
    """Arrays over the (run, time) pairs before `valid_until`, by seeds of a parity."""
    columns: dict[str, list[float]] = {}
    for seed, result in results.items():
        level = result[f"p{order}"]
        for i, t in enumerate(result["times"]):
            row = {name: level[name][i] for name in ("error", "change", "predicted")}
            row |= {"estimate": level[form][i], "scale": level["scale"]}
            row["seed"] = int(seed)
            inside = t <= level["valid_until"] and np.all(np.isfinite([*row.values()]))
            if int(seed) % 2 == parity and inside and row["predicted"] > 1e-9:
                for name, value in row.items():
                    columns.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in columns.items()}


def row(results, form, p) -> Row:
    x = pairs(results, p, form)
    wrong = x["error"] > 0.1 * x["change"]
    significant = x["error"] > 1e-3
    ratios = x["error"][significant] / x["estimate"][significant]
    share = x["estimate"] / x["predicted"]
    exceeded = x["error"] > 3 * x["estimate"] + 1e-3 * x["scale"]
    silent = (x["error"] > 0.5 * x["change"]) & (share < 0.3)
    runs = len(np.unique(x["seed"]))
    return {
        "case": f"{form}, p = {p}",
        "runs": runs,
        "area under the ROC curve": float(area_under_curve(share, wrong)),
        "median of error / estimate": float(np.median(ratios)),
        "exceeded threefold (%)": float(100 * exceeded.mean()),
        "silent and wrong by half (%)": 100 * len(np.unique(x["seed"][silent])) / runs,
    }


def plot(results):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(7, 2.8), layout="constrained")
    limits = np.array([1e-6, 10.0])
    colors = [nth.plot.level_color(p) for p in ORDERS]
    for axis, p, color in zip(axes, ORDERS, colors, strict=True):
        x = pairs(results, p, "matrix-free")
        share, error = x["estimate"] / x["predicted"], x["error"] / x["change"]
        axis.loglog(share, error, ".", color=color, ms=3, alpha=0.4, mew=0)
        axis.plot(limits, limits, color="black", lw=0.8)
        axis.plot(limits, 3 * limits, color="black", lw=0.6, ls=":")
        axis.set(xlim=limits, ylim=limits, title=f"$p = {p}$")
        axis.set_xlabel("estimate / predicted change")
    axes[0].set_ylabel("error / change of the network")
    figure.savefig("error_estimate.png", dpi=150)


def run_all(count, path):
    """The records of `count` problems; those in the file are not run again."""
    results = json.loads(path.read_text()) if path.exists() else {}
    warnings.simplefilter("ignore", nth.WindowWarning)

    def shape(seed):
        description = problem_of(seed)[-1]
        return description["width"], description["depth"]

    for seed in sorted(range(count), key=shape):
        if str(seed) not in results:
            results[str(seed)] = run(seed)
            path.write_text(json.dumps(results))
    return results


def measure(small: bool) -> list[Row]:
    """Resumes from `error_estimate.json`, and draws `error_estimate.png`."""
    if small:
        with tempfile.TemporaryDirectory() as folder:
            results = run_all(4, Path(folder) / "results.json")
    else:
        results = run_all(480, Path("error_estimate.json"))
        with nth.plot.style():
            plot(results)
    every = [(form, p) for form in ("matrix-free", "dense") for p in ORDERS]
    return [row(results, form, p) for form, p in every if (form, p) != ("dense", 2)]
