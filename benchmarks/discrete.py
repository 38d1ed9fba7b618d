"""Time of a step of discrete training at level p, relative to a gradient of its batch.

    python -m benchmarks discrete

In float64 and float32, for two hidden layers, the time of a step for p = 2 … 5,
full batch with and without momentum and weight decay, and in mini-batches, relative to
`jax.grad` of the loss on the same number of points. The time of a step is the
difference between runs of 2 and of 18 steps, divided by 16, which excludes
compilation, the check of the critical rate, and the outputs. All optimizers and the
gradients take turns, and the least processor time of each counts.
"""

import time
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import nth

from .matrix_free import problem_of
from .record import Row

FEW, MANY = 2, 18
TURNS = 5


def in_turns(functions):
    """The least processor time of each function over all threads, which other processes
    hardly affect."""
    least = {}
    for turn in range(TURNS + 1):
        for name, function in functions.items():
            start = time.process_time()
            jax.block_until_ready(function())
            if turn:  # the first compiles
                took = time.process_time() - start
                least[name] = min(least.get(name, took), took)
    return least


@eqx.filter_jit
def gradient(network, problem, size):
    x, y = problem.x_train[:size], problem.y_train[:size]
    return eqx.filter_grad(lambda net: problem.loss(jax.vmap(net)(x), y))(network)


def trained(network, problem, number, optimizer, order, batches):
    return nth.solve_discrete(
        network, problem, [number], optimizer, order=order, progress=False, **batches
    ).train


def ratios(dtype, n, width, size, orders):
    network = nth.MLP(64, width, 2, dtype=dtype, key=jax.random.key(0))
    problem = problem_of(n, dtype)
    batches = {"batch_size": size, "key": jax.random.key(2)}
    decay = optax.add_decayed_weights(1e-3)
    optimizers = {
        "SGD": (n, optax.sgd(0.1), {}),
        "momentum, decay": (n, optax.chain(decay, optax.sgd(0.1, momentum=0.9)), {}),
        "Adam": (n, optax.adam(1e-3, eps=1e-4), {}),
    }
    for few in (size, size // 4):
        drawn = {**batches, "batch_size": few}
        optimizers[f"batches of {few}"] = (few, optax.sgd(0.1), drawn)
        adam = optax.adam(1e-3, eps=1e-4)
        optimizers[f"Adam, batches of {few}"] = (few, adam, drawn)
    case = f"{dtype.__name__}, n = {n}, width {width}"
    rows: dict[str, Row] = {name: {"case": f"{case}, {name}"} for name in optimizers}
    for p in orders:
        functions = {
            points: partial(gradient, network, problem, points)
            for points, *_ in optimizers.values()
        }
        for name, (_, optimizer, options) in optimizers.items():
            for number in (FEW, MANY):
                run = partial(trained, network, problem, number, optimizer, p, options)
                functions[name, number] = run
        least = in_turns(functions)
        for name, (points, *_) in optimizers.items():
            step = (least[name, MANY] - least[name, FEW]) / (MANY - FEW)
            rows[name][f"step / gradient, p = {p}"] = step / least[points]
        jax.clear_caches()  # whose functions hold memory maps, which Linux limits
    return list(rows.values())


def measure(small: bool) -> list[Row]:
    sizes = (64, 32, 16) if small else (1024, 512, 256)
    orders = (2,) if small else (2, 3, 4, 5)
    dtypes = (jnp.float64,) if small else (jnp.float64, jnp.float32)
    return [row for dtype in dtypes for row in ratios(dtype, *sizes, orders)]
