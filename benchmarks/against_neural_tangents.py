"""K⁽²⁾ of small networks, by nth and by the three methods of neural-tangents.

    python -m benchmarks against_neural_tangents

Neural-tangents 0.6.5 needs JAX 0.4.23 and Python 3.11, so it runs in a virtual
environment of its own, `nth-neural-tangents` in the folder for temporary files, which
is made unless it is there. Both sides get the same parameters and points, compile their
functions, and take turns of a few calls each; the least time counts, and the kernels
must agree. The baseline `plain` is `jax.vmap` of `jax.jacrev` and one
product of matrices, on the side of nth.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "jax==0.4.23",
    "jaxlib==0.4.23",
    "neural-tangents==0.6.5",
    "tf2jax==0.3.5",
    "numpy<2",
    "scipy<1.13",
)
Side = Callable[[dict[str, Any]], dict[str, Any]]  # a case ↦ times and the kernel
METHODS = ("JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS", "STRUCTURED_DERIVATIVES")
TURNS = 3


def convolutional(p, x):
    """Two convolutions, a mean over positions, and a dense layer."""

    def layer(x, w, b, stride, padding):
        z = jax.lax.conv_general_dilated(x, w, (stride, stride), padding)
        return jax.nn.relu(z + b[:, None, None])

    x = layer(x[None], p["w1"], p["b1"], 1, "SAME")
    x = layer(x, p["w2"], p["b2"], 2, "VALID")
    return p["w3"] @ x[0].mean((1, 2)) + p["b3"]


def attention(p, x):
    """One block of attention (4 heads) and a dense layer on the mean of 16 tokens."""

    def heads(w):
        return (x @ w.T).reshape(len(x), 4, -1)

    q, k, v = heads(p["q"]), heads(p["k"]), heads(p["v"])
    scores = jnp.einsum("she,the->hst", q, k) / q.shape[2] ** 0.5
    mixed = jnp.einsum("hst,the->she", jax.nn.softmax(scores, axis=-1), v)
    x = x + mixed.reshape(x.shape) @ p["o"].T
    x = x + jax.nn.gelu(x @ p["up"].T) @ p["down"].T
    return p["read"] @ x.mean(0)


def dense(p, x):
    """Three layers of width 512."""
    return p["w3"] @ jnp.tanh(p["w2"] @ jnp.tanh(p["w1"] @ x))


def residual(p, x):
    """Layers of width 512 with a skip connection and layer normalization."""
    x = jnp.tanh(p["w1"] @ x)
    z = (x - x.mean()) / jnp.sqrt(x.var() + 1e-5) * p["scale"]
    return p["w3"] @ (x + p["down"] @ jnp.tanh(p["up"] @ z))


NETWORKS = {
    "convolutional": (convolutional, (1, 16, 16)),
    "attention": (attention, (16, 32)),
    "dense": (dense, (64,)),
    "residual": (residual, (64,)),
}


def shapes(name: str, outputs: int) -> dict[str, tuple[int, ...]]:
    if name == "convolutional":
        kernels = {"w1": (16, 1, 3, 3), "w2": (16, 16, 3, 3), "w3": (outputs, 16)}
        return {**kernels, "b1": (16,), "b2": (16,), "b3": (outputs,)}
    if name == "attention":
        square = {part: (32, 32) for part in "qkvo"}
        return {**square, "up": (128, 32), "down": (32, 128), "read": (outputs, 32)}
    ends = {"w1": (512, 64), "w3": (outputs, 512)}
    if name == "residual":
        return {**ends, "scale": (512,), "up": (512, 512), "down": (512, 512)}
    return {**ends, "w2": (512, 512)}


def inputs(case: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Parameters and points, the same on both sides."""
    rng = np.random.default_rng(0)

    def draw(shape, scale):
        return jnp.asarray(rng.normal(size=shape) * scale, case["dtype"])

    params = {
        key: draw(shape, max(1, np.prod(shape[1:])) ** -0.5)
        for key, shape in shapes(case["network"], case["outputs"]).items()
    }
    return params, draw((case["n"], *NETWORKS[case["network"]][1]), 1.0)


def timed(function, *arguments) -> tuple[Any, float]:
    """The value of a compiled function, and its least time."""
    value, seconds = jax.block_until_ready(function(*arguments)), []
    while len(seconds) < 5 and sum(seconds) < 2:
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return np.asarray(value), min(seconds)


def of_neural_tangents(case: dict[str, Any]) -> dict[str, Any]:
    import neural_tangents as nt  # pyright: ignore  # of the other environment

    apply = NETWORKS[case["network"]][0]
    params, x = inputs(case)
    results = {}
    for method in METHODS:
        ntk = nt.empirical_ntk_fn(
            jax.vmap(apply, (None, 0)),
            trace_axes=(),
            vmap_axes=0,
            implementation=nt.NtkImplementation[method],
        )
        try:
            function = jax.jit(lambda p, x, ntk=ntk: ntk(x, None, p))
            value, least = timed(function, params, x)
        except Exception as error:  # a method that does not know an operation
            results[method] = {"error": str(error)[:200]}
            continue
        results[method] = {"seconds": least}
        results["kernel"] = np.moveaxis(value, 2, 1)
    return results


def of_nth(case: dict[str, Any]) -> dict[str, Any]:
    import equinox as eqx

    import nth

    apply, outputs = NETWORKS[case["network"]][0], case["outputs"]
    params, x = inputs(case)

    network = nth.from_apply(apply, params)
    # Outside the functions, since it checks its data, as the other sides do not.
    problem = nth.Problem(x, jnp.zeros((len(x), outputs), x.dtype))

    def kernel(network, problem):
        return nth.kernels(network, problem, order=2, progress=False)[2]

    def plain(params, x):
        leaves = jax.tree.leaves(jax.vmap(jax.jacrev(apply), (None, 0))(params, x))
        rows = [leaf.reshape(len(x) * outputs, -1) for leaf in leaves]
        jacobian = jnp.concatenate(rows, axis=1)
        return jacobian @ jacobian.T

    results: dict[str, Any] = {}
    value, least = timed(eqx.filter_jit(kernel), network, problem)
    results["nth"], results["kernel"] = {"seconds": least}, value
    results["nth, eager"] = {"seconds": timed(kernel, network, problem)[1]}
    results["plain"] = {"seconds": timed(jax.jit(plain), params, x)[1]}
    return results


def environment() -> Path:
    """The Python of the environment of neural-tangents."""
    folder = Path(tempfile.gettempdir()) / "nth-neural-tangents"
    python = folder / "bin" / "python"
    if not python.exists():
        version = "python3.11"
        subprocess.run([version, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", *PACKAGES]
        subprocess.run(install, check=True)
    return python


class Turns(NamedTuple):
    """The results of both sides, which take turns."""

    seconds: dict[str, float]
    errors: dict[str, str]
    difference: float
    """The largest difference of the kernels, in units of the largest entry."""


def in_turns(
    module: str, case: dict[str, Any], python: Path, tolerance: float
) -> Turns:
    """Runs of `module` for both sides; their kernels must agree to `tolerance`."""
    seconds: dict[str, float] = {}
    errors: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(TURNS):
            for side, interpreter in (("nt", python), ("nth", sys.executable)):
                task = ["-m", module, side, json.dumps(case), folder]
                subprocess.run([interpreter, *task], cwd=ROOT, check=True)
                found = json.loads((Path(folder) / f"{side}.json").read_text())
                for name, result in found.items():
                    if "error" in result:
                        errors[name] = result["error"]
                    else:
                        least = min(result["seconds"], seconds.get(name, np.inf))
                        seconds[name] = least
        ours, theirs = (np.load(Path(folder) / f"{s}.npy") for s in ("nth", "nt"))
    difference = float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))
    if not difference < tolerance:
        raise ValueError(f"{case}: kernels differ by {difference:.1e}.")
    return Turns(seconds, errors, difference)


def compared(case: dict[str, Any], python: Path) -> dict[str, Any]:
    """The times of both sides, and their ratios."""
    tolerance = 1e-10 if case["dtype"] == "float64" else 1e-4
    seconds, _, difference = in_turns(__spec__.name, case, python, tolerance)
    best = min((seconds[m], m) for m in METHODS if m in seconds)
    outputs = "1 output" if case["outputs"] == 1 else f"{case['outputs']} outputs"
    return {
        "case": f"{case['network']}, n = {case['n']}, {outputs}, {case['dtype']}",
        "nth (s)": seconds["nth"],
        "nth, eager (s)": seconds["nth, eager"],
        "neural-tangents (s)": best[0],
        "its fastest method": best[1].lower().replace("_", " "),
        "neural-tangents / nth": best[0] / seconds["nth"],
        "plain JAX / nth": seconds["plain"] / seconds["nth"],
        "difference": difference,
    }


def work(sides: dict[str, Side]) -> None:
    """Run a case on one of `sides`, as a process that `in_turns` starts."""
    side, case, folder = sys.argv[1:]
    jax.config.update("jax_enable_x64", True)
    results = sides[side](json.loads(case))
    np.save(Path(folder) / f"{side}.npy", np.asarray(results.pop("kernel")))
    (Path(folder) / f"{side}.json").write_text(json.dumps(results))


# Network, points, outputs, types of numbers. A call of neural-tangents takes minutes
# for ten outputs of the convolutional network in float64.
BOTH = ("float64", "float32")
CASES = (
    ("attention", 32, 1, BOTH),
    ("attention", 32, 10, BOTH),
    ("dense", 128, 1, BOTH),
    ("dense", 128, 10, BOTH),
    ("residual", 128, 1, BOTH),
    ("convolutional", 64, 1, BOTH),
    ("convolutional", 128, 1, BOTH),
    ("convolutional", 64, 10, ("float32",)),
)


def measure(small: bool) -> list[dict[str, Any]]:
    python = environment()
    cases = (("dense", 8, 1, BOTH[:1]),) if small else CASES
    return [
        compared({"network": name, "n": n, "outputs": c, "dtype": dtype}, python)
        for name, n, c, dtypes in cases
        for dtype in dtypes
    ]


if __name__ == "__main__":
    work({"nth": of_nth, "nt": of_neural_tangents})
