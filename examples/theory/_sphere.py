"""A problem that several scripts of this folder share."""

import jax
import jax.numpy as jnp

import nth


def data(n: int, d: int) -> nth.Problem:
    """Points on a sphere, labeled by a product of two coordinates."""
    x = jax.random.normal(jax.random.key(0), (n, d))
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    return nth.Problem(x, jnp.sign(x[:, 0] * x[:, 1]))
