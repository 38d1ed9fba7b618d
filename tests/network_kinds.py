"""Small networks of every supported kind, each with an independent plain function.

A case holds the network as a user passes it, `apply(params, x)` and `params` written
with the framework only, and the problem. Nothing here computes anything with nth.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import nth

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(4, 3)) / 2)
Y = jnp.asarray([0.5, -0.3, 0.8])
DTYPE = {"param_dtype": jnp.float64}


class Case(NamedTuple):
    network: Any
    apply: Callable[[Any, Any], jax.Array]
    params: Any
    problem: nth.Problem
    options: dict[str, Any]


def case(network, apply, params, x: Any = X, **options: Any):
    train, test = (
        jax.tree.map(lambda leaf, s=s: leaf[s], x) for s in (slice(3), slice(3, None))
    )
    return Case(network, apply, params, nth.Problem(train, Y, test), options)


def of_module(network, x: Any = X, filter_spec: Any = eqx.is_inexact_array):
    """A case from the call and the arrays of an Equinox module."""
    params, rest = eqx.partition(network, filter_spec)
    options = (
        {} if filter_spec is eqx.is_inexact_array else {"filter_spec": filter_spec}
    )
    return case(network, lambda p, x: eqx.combine(p, rest)(x), params, x, **options)


def nth_mlp():
    return of_module(nth.MLP(3, 4, 2, use_bias=True, key=KEY))


def equinox_mlp():
    return of_module(eqx.nn.MLP(3, "scalar", 4, 2, activation=jnp.tanh, key=KEY))


def equinox_sequential():
    keys = jax.random.split(KEY)
    layers = [
        eqx.nn.Lambda(lambda x: x[None]),
        eqx.nn.Conv1d(1, 2, 2, key=keys[0]),
        eqx.nn.Lambda(jax.nn.softplus),
        eqx.nn.Dropout(0.5),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.LayerNorm(4),
        eqx.nn.Linear(4, "scalar", key=keys[1]),
    ]
    return of_module(eqx.nn.inference_mode(eqx.nn.Sequential(layers)))


class WithStatistics(eqx.Module):
    """A stateful layer in inference mode, with its state stored next to it."""

    norm: eqx.nn.BatchNorm
    state: eqx.nn.State
    read: jax.Array

    def __call__(self, x):
        return jnp.vdot(self.read, jnp.tanh(self.norm(x, self.state)[0]))


def with_statistics():
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="batch")
    norm = eqx.nn.inference_mode(norm)
    return WithStatistics(norm, state, jnp.asarray([1.0, -0.5, 0.3]))


def equinox_batch_norm():
    network = with_statistics()
    trains = jax.tree.map(eqx.is_inexact_array, network)
    frozen = jax.tree.map(lambda _: False, network.state)
    spec = eqx.tree_at(lambda net: net.state, trains, frozen)
    return of_module(network, filter_spec=spec)


class LinenNet(nn.Module):
    average: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, **DTYPE)(x)
        x = nn.BatchNorm(use_running_average=self.average, **DTYPE)(x)
        x = nn.Dropout(0.5, deterministic=True)(jnp.tanh(x))
        return nn.Dense(1, **DTYPE)(x)[..., 0]


def linen_variables():
    variables = LinenNet().init(KEY, X[0])
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)


def linen():
    variables = linen_variables()
    statistics = variables["batch_stats"]

    def apply(params, x):
        return LinenNet().apply({"params": params, "batch_stats": statistics}, x)

    params = variables["params"]
    return case(nth.from_apply(apply, params), apply, params)


def linen_batched():
    apply, params = linen()[1:3]
    return case(nth.from_apply(apply, params, batched=True), apply, params)


class NNXNet(nnx.Module):
    def __init__(self, rngs, dtype: Any = jnp.float64):
        options: Any = {"rngs": rngs, "param_dtype": dtype}
        self.first = nnx.Linear(3, 4, **options)
        self.norm = nnx.BatchNorm(4, **options)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(4, 1, **options)

    def __call__(self, x):
        return self.last(self.drop(jnp.tanh(self.norm(self.first(x)))))[0]


class NNXTied(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 3, rngs=rngs, **DTYPE)
        self.second = self.first

    def __call__(self, x):
        return jnp.sum(self.second(jnp.tanh(self.first(x))))


def split(network):
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    rest = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64) if eqx.is_inexact_array(leaf) else leaf,
        rest,
    )
    return lambda p, x: nnx.merge(graphdef, p, rest)(x), params


def nnx_direct():
    network = NNXNet(nnx.Rngs(0))
    network.eval()
    return case(network, *split(network))


def nnx_split():
    network = NNXNet(nnx.Rngs(0))
    network.eval()
    apply, params = split(network)
    return case(nth.from_apply(apply, params), apply, params)


def nnx_tied():
    network = NNXTied(nnx.Rngs(0))
    return case(network, *split(network))


def haiku():
    def forward(x):
        return hk.Linear(1)(jnp.tanh(hk.Linear(4)(x)))[0]

    network = hk.without_apply_rng(hk.transform(forward))
    params = network.init(KEY, X[0])
    return case(nth.from_apply(network.apply, params), network.apply, params)


def non_array_leaves():
    arrays = {"w": draw(4, 3), "a": draw(4)}
    params = {**arrays, "activation": jnp.sin, "power": 3, "name": "net"}

    def apply(params, x):
        return (
            jnp.vdot(params["a"], params["activation"](params["w"] @ x))
            ** params["power"]
        )

    plain = lambda p, x: jnp.vdot(p["a"], jnp.sin(p["w"] @ x)) ** 3  # noqa: E731
    return case(nth.from_apply(apply, params), plain, arrays)


@jax.custom_jvp
def forward_rule(z):
    return jnp.tanh(z)


forward_rule.defjvps(lambda dz, value, z: dz * (1 - value**2))


@jax.custom_vjp
def reverse_rule(z):
    return jnp.tanh(z)


reverse_rule.defvjp(
    lambda z: (reverse_rule(z), z), lambda z, g: (g * (1 - jnp.tanh(z) ** 2),)
)


def custom_jvp():
    params = {"w": draw(4, 3), "a": draw(4)}
    apply = lambda p, x: jnp.vdot(p["a"], forward_rule(p["w"] @ x))  # noqa: E731
    return case(nth.from_apply(apply, params), apply, params)


def custom_vjp():
    params = {"w": draw(4, 3), "a": draw(4)}
    apply = lambda p, x: jnp.vdot(p["a"], reverse_rule(p["w"] @ x))  # noqa: E731
    return case(nth.from_apply(apply, params), apply, params)


def tokens():
    params = {"embed": draw(5, 4), "a": draw(4)}

    def apply(params, x):
        return jnp.vdot(params["a"], jnp.tanh(params["embed"][x]).mean(axis=0))

    x = jnp.asarray([[0, 1, 2], [3, 4, 4], [2, 2, 0], [1, 3, 0]])
    return case(nth.from_apply(apply, params), apply, params, x)


def shared_weights():
    first, second = (eqx.nn.Linear(3, 3, key=key) for key in jax.random.split(KEY))
    pair = eqx.nn.Shared(
        (first, second), lambda pair: pair[1].weight, lambda pair: pair[0].weight
    )

    class Tied(eqx.Module):
        pair: eqx.nn.Shared

        def __call__(self, x):
            first, second = self.pair()
            return jnp.sum(second(jnp.tanh(first(x))))

    return of_module(Tied(pair))


def two_inputs():
    params = {"w": draw(4, 3), "embed": draw(3, 4)}

    def apply(params, x):
        return jnp.sum(jnp.tanh(params["w"] @ x["x"] + params["embed"][x["z"]]))

    x = {"x": X, "z": jnp.asarray([0, 2, 1, 1])}
    return case(nth.from_apply(apply, params), apply, params, x)


def tuple_of_inputs():
    params = draw(4, 3)
    apply = lambda w, x: jnp.sum(jnp.tanh(w @ x[0])) * x[1]  # noqa: E731
    x = (X, jnp.asarray([0.5, 1.0, -1.0, 2.0]))
    return case(nth.from_apply(apply, params), apply, params, x)


def scanned():
    def apply(w, x):
        return jnp.sum(jax.lax.scan(lambda h, w: (jnp.tanh(w @ h), None), x, w)[0])

    params = draw(2, 3, 3)
    return case(nth.from_apply(apply, params), apply, params)


def draw(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape))


# The kernels of every kind are tested. Solves take long to compile, and depend on a
# kind through the same function of its parameters. So level 2 in closed form is tested
# for one half of the kinds and training for the other, with neighbors in different
# halves, and both for what JAX differentiates differently: a rule of its own, and
# integers.
SOLVED = [
    nth_mlp,
    equinox_batch_norm,
    linen_batched,
    nnx_direct,
    non_array_leaves,
    custom_jvp,
    tokens,
    shared_weights,
    two_inputs,
]
TRAINED = [
    equinox_mlp,
    equinox_sequential,
    linen,
    nnx_split,
    nnx_tied,
    haiku,
    custom_jvp,
    tokens,
    tuple_of_inputs,
    scanned,
]
KINDS = list(dict.fromkeys([*SOLVED, *TRAINED]))
