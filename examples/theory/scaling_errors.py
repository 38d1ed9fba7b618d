"""The error of level p in width and time: Theorem 2.6 of Huang & Yau (2020).

    python examples/theory/scaling_errors.py           # a few minutes on 2 cores
    python examples/theory/scaling_errors.py --small   # seconds

Prints the exponents of the width at t = 4, and of the time at one width, of the error
(Σ_b (f_b − f̃_b)²)^{1/2} of levels 2, 3 and 4 beside the trained network, and
writes scaling_errors.png. The theorem is of even levels, and of the time at once with
the width: (1 + t) t^{p−1} min{t, n/λ}/m^{p/2}, which is t^p while t is small.
"""

import click
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from _law import COLORS, axes, draw, medians, points, report

import nth

jax.config.update("jax_enable_x64", True)

EARLY, LATE = [0.0625, 0.125, 0.25, 0.5], 4.0
LEVELS = {2: "-1 (Theorem 2.6)", 3: "none for odd levels", 4: "-2 (Theorem 2.6)"}


def solved(dynamics: nth.AbstractDynamics) -> jax.Array:
    """Outputs to many digits: the errors of high levels are small."""
    controller = diffrax.PIDController(1e-11, 1e-13, norm=dynamics.error_norm)
    ts = [*EARLY, LATE]
    options = {"stepsize_controller": controller, "solver": diffrax.Dopri8()}
    return nth.integrate(dynamics, ts, max_steps=2**11, **options).train


@click.command()
@click.option("--small", is_flag=True, help="Seconds, not minutes.")
def main(small: bool) -> None:
    widths = [16, 32, 64] if small else [32, 64, 128, 256]
    problem = nth.Problem(points(3), jnp.asarray([1.0, -1.0, 1.0]))

    def measure(width: int, key: jax.Array) -> dict[str, jax.Array]:
        network = nth.MLP(4, width, 2, key=key)
        kernels = nth.kernels(network, problem, order=max(LEVELS), progress=False)
        truth = solved(nth.GradientFlow(network, problem))
        errors = {}
        for p in LEVELS:
            if p == 2:
                level = nth.closed_form(kernels, problem, [*EARLY, LATE]).train
            else:
                level = solved(nth.DenseHierarchy(kernels, problem, order=p))
            parted = level - truth
            *early, late = jnp.linalg.norm(parted, axis=1)
            errors |= {
                f"p = {p}, t = {t}": e for t, e in zip(EARLY, early, strict=True)
            }
            errors[f"p = {p}"] = late
        return errors

    count = 4 if small else 96
    options = {"key": jax.random.key(0), "batch_size": 100, "progress": not small}
    sweep = nth.scaling.sweep(measure, widths, count, **options)
    figure, (left, right) = axes(2)
    rows = medians(left, sweep, {f"p = {p}": text for p, text in LEVELS.items()})
    left.set_title(f"error at $t = {LATE:g}$, median")
    for p, color in zip(LEVELS, COLORS, strict=False):
        over = np.stack([sweep.values[f"p = {p}, t = {t}"][-1] for t in EARLY])
        law = nth.scaling.fit(EARLY, over, statistic=np.median)
        draw(right, EARLY, over, np.median, law, f"p = {p}", color)
        published = f"{p} (Theorem 2.6)" if p % 2 == 0 else "none for odd levels"
        rows.append((f"p = {p}, in the time", law, published))
    left.set_ylabel("distance from the trained network")
    right.set(xlabel="time $t$")
    right.set_title(f"error at width {widths[-1]}, median")
    report("error, median", rows)
    figure.savefig("scaling_errors.png")


if __name__ == "__main__":
    main()
