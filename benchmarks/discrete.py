"""Time of a step of discrete training at level p, relative to a gradient of its batch.

    python -m benchmarks discrete

In float64 and float32, for two hidden layers, the time of a step for p = 2 … 5,
full batch with and without momentum and weight decay, and in mini-batches, relative to
`jax.grad` of the loss on the same number of points, timed before and after in the same
run. The time of a step is the difference between runs of 2 and of 14 steps, divided by
12, which excludes compilation, the check of the critical rate, and the outputs.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import nth

from .matrix_free import problem_of
from .record import Row

FEW, MANY = 2, 14


def least(function, repeats=4):
    """The minimum CPU time over all threads, which other processes hardly affect."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(function())
        times.append(time.process_time() - start)
    return min(times)


def gradient_seconds(network, problem, size):
    @eqx.filter_jit
    def gradient(network, x, y):
        return eqx.filter_grad(lambda net: problem.loss(jax.vmap(net)(x), y))(network)

    x, y = problem.x_train[:size], problem.y_train[:size]
    return least(lambda: gradient(network, x, y), repeats=9)


def step_seconds(network, problem, optimizer, order, batches):
    def run(number):
        return least(
            lambda: (
                nth.solve_discrete(
                    network,
                    problem,
                    [number],
                    optimizer,
                    order=order,
                    progress=False,
                    **batches,
                ).train
            )
        )

    return (run(MANY) - run(FEW)) / (MANY - FEW)


def ratios(dtype, n, width, size):
    network = nth.MLP(64, width, 2, dtype=dtype, key=jax.random.key(0))
    problem = problem_of(n, dtype)
    batches = {"batch_size": size, "key": jax.random.key(2)}
    decay = optax.add_decayed_weights(1e-3)
    optimizers = {
        "SGD": (n, optax.sgd(0.1), {}),
        "momentum, decay": (n, optax.chain(decay, optax.sgd(0.1, momentum=0.9)), {}),
        f"batches of {size}": (size, optax.sgd(0.1), batches),
        "Adam": (n, optax.adam(1e-3, eps=1e-4), {}),
        f"Adam, batches of {size}": (size, optax.adam(1e-3, eps=1e-4), batches),
    }
    for name, (points, optimizer, options) in optimizers.items():
        case = f"{dtype.__name__}, n = {n}, width {width}, {name}"
        row: Row = {"case": case}
        for p in (2, 3, 4, 5):
            before = gradient_seconds(network, problem, points)
            step = step_seconds(network, problem, optimizer, p, options)
            after = gradient_seconds(network, problem, points)
            row[f"step / gradient, p = {p}"] = step / ((before + after) / 2)
        yield row


def measure(small: bool) -> list[Row]:
    sizes = (64, 32, 16) if small else (1024, 512, 256)
    dtypes = (jnp.float64,) if small else (jnp.float64, jnp.float32)
    return [row for dtype in dtypes for row in ratios(dtype, *sizes)]
