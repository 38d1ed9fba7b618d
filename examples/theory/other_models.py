"""Levels of the hierarchy beside the linearized and the Taylorized network.

    python examples/theory/other_models.py            # about a minute on 2 cores
    python examples/theory/other_models.py --small    # seconds: what the checks run

Prints a table and writes other_models.png.
"""

import click
import jax
import numpy as np

import nth

jax.config.update("jax_enable_x64", True)


@click.command()
@click.option("--small", is_flag=True, help="Seconds, not a minute.")
def main(small: bool) -> None:
    n, q, width = (3, 2, 8) if small else (8, 8, 64)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n + q, 10))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    problem = nth.Problem(x[:n], rng.choice([-1.0, 1.0], n), x[n:])
    network = nth.MLP(10, width, 2, key=jax.random.key(0))
    models = {
        f"Taylorized {d}": nth.TaylorizedFlow(network, problem, degree=d)
        for d in ((2,) if small else (1, 2, 3))
    }
    orders = (2, 3) if small else (2, 3, 4)
    ts = np.concatenate([[0.0], np.geomspace(0.1, 10.0 if small else 60.0, 31)])
    comparison = nth.compare(network, problem, ts, orders, models=models)
    print(comparison)
    comparison.plot().savefig("other_models.png")


if __name__ == "__main__":
    main()
