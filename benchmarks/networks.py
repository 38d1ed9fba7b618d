"""Networks with one output that are no plain chains, and points for them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import nth

from .against_neural_tangents import NETWORKS, inputs

TOKENS, VOCABULARY = 16, 2000


class Residual(eqx.Module):
    """Two residual blocks with layer normalization, width 512."""

    first: eqx.nn.Linear
    blocks: list[eqx.nn.Linear]
    norms: list[eqx.nn.LayerNorm]
    last: eqx.nn.Linear

    def __init__(self, width: int, key: Any):
        keys = jax.random.split(key, 4)
        self.first = eqx.nn.Linear(64, width, key=keys[0])
        self.blocks = [eqx.nn.Linear(width, width, key=k) for k in keys[1:3]]
        self.norms = [eqx.nn.LayerNorm(width) for _ in range(2)]
        self.last = eqx.nn.Linear(width, "scalar", key=keys[3])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first(x)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = x + block(jnp.tanh(norm(x)))
        return self.last(x)


class Embedding(eqx.Module):
    """The mean of embedded tokens, and two dense layers."""

    table: eqx.nn.Embedding
    hidden: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, width: int, key: Any):
        keys = jax.random.split(key, 3)
        self.table = eqx.nn.Embedding(VOCABULARY, width, key=keys[0])
        self.hidden = eqx.nn.Linear(width, width, key=keys[1])
        self.last = eqx.nn.Linear(width, "scalar", key=keys[2])

    def __call__(self, tokens: jax.Array) -> jax.Array:
        mean = jnp.mean(jax.vmap(self.table)(tokens), axis=0)
        return self.last(jnp.tanh(self.hidden(mean)))


def network_and_points(name: str, n: int) -> tuple[Any, jax.Array]:
    """`name` is convolutional, attention, residual or embedding."""
    key, x_key = jax.random.split(jax.random.key(0))
    if name == "residual":
        return Residual(512, key), jax.random.normal(x_key, (n, 64))
    if name == "embedding":
        return Embedding(64, key), jax.random.randint(x_key, (n, TOKENS), 0, VOCABULARY)
    apply = NETWORKS[name][0]
    params, x = inputs({"network": name, "n": n, "outputs": 1, "dtype": "float64"})
    return nth.from_apply(lambda params, x: apply(params, x)[0], params), x
