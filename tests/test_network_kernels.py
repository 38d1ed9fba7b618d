"""Residual and convolutional networks at infinite width."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import central_slopes
from jax.scipy.special import erf

import nth
from nth.infinite import (
    Activation,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Residual,
    network_kernels,
)

RNG = np.random.default_rng(0)
FLAT = RNG.normal(size=(3, 4)) / 2
SIGNALS = RNG.normal(size=(3, 2, 5))  # 2 channels, 5 positions
BIAS: Any = {"use_bias": True, "sigma_b": 0.5}


@pytest.mark.parametrize(
    ("parameterization", "activation"),
    [("nth", "relu"), ("ntk", "tanh"), ("standard", "erf")],
)
def test_a_chain_of_dense_layers_has_the_kernels_of_an_mlp(
    parameterization, activation
):
    options: Any = {"parameterization": parameterization}
    expected = nth.infinite.kernels(
        FLAT,
        depth=2,
        activation=activation,
        sigma_w=1.4,
        sigma_a=0.8,
        **BIAS,
        **options,
    )
    hidden = [Dense(1.4, **BIAS), Activation(activation)]
    layers = [*hidden, *hidden, Dense(0.8, **BIAS)]
    found = network_kernels(layers, FLAT, **options)
    np.testing.assert_allclose(found.nngp, expected.nngp, rtol=1e-13)
    np.testing.assert_allclose(found.ntk, expected.ntk, rtol=1e-13)


class Matrices:
    """The kernels over all pairs (point, position), by matrices that act on them.

    A second algorithm: nothing is known of equal positions, and every layer is a sum of
    matrix products M C Mᵀ with the matrices M of its places.
    """

    def __init__(self, x: np.ndarray, parameterization: str, activation: str):
        self.points, channels, self.positions = x.shape
        rows = np.moveaxis(x, 1, 2).reshape(-1, channels)
        self.sigma = rows @ rows.T / channels
        self.theta = np.zeros_like(self.sigma)
        self.parameterization, self.activation = parameterization, activation
        self.fan, self.is_input = channels, True

    def weights(self, sigma: float, beta: float | None, places: list[np.ndarray]):
        every = [np.kron(np.eye(self.points), place) for place in places]
        count, fan_in = len(every), self.fan * len(every)
        s, t = (
            sum(m @ part @ m.T for m in every) / count
            for part in (self.sigma, self.theta)
        )
        first = self.is_input
        weight, bias = sigma**2, 0 if beta is None else beta**2
        rate, bias_rate = {
            "ntk": (weight, bias),
            "nth": (fan_in if first else 1, 0 if beta is None else 1),
            "standard": (0 if first else fan_in, 0),
        }[self.parameterization]
        if self.parameterization == "nth" and first:
            weight = weight * fan_in
        self.theta = rate * s + weight * t + bias_rate
        self.sigma = weight * s + bias
        self.fan, self.is_input = 1, False
        self.positions = len(places[0])
        return self

    def conv(self, size, sigma, beta=None, *, stride=1, padding="SAME"):
        length = self.positions
        count = (length - size) // stride + 1
        low = 0
        if padding != "VALID":
            count = math.ceil(length / stride)
            low = max((count - 1) * stride + size - length, 0) // 2
        places = []
        for place in range(size):
            matrix = np.zeros((count, length))
            for row in range(count):
                column = row * stride + place - low
                if padding == "CIRCULAR":
                    column %= length
                if 0 <= column < length:
                    matrix[row, column] = 1
            places.append(matrix)
        return self.weights(sigma, beta, places)

    def dense(self, sigma, beta=None):
        assert self.positions == 1
        return self.weights(sigma, beta, [np.eye(1)])

    def act(self):
        a = np.diag(self.sigma)
        if self.activation == "relu":
            scale = np.sqrt(np.outer(a, a))
            angle = np.arccos(np.clip(self.sigma / scale, -1, 1))
            lune = np.sin(angle) + (np.pi - angle) * np.cos(angle)
            value, slope = scale * lune / (2 * np.pi), (np.pi - angle) / (2 * np.pi)
        else:
            whole = np.outer(1 + 2 * a, 1 + 2 * a)
            value = 2 / np.pi * np.arcsin(2 * self.sigma / np.sqrt(whole))
            slope = 4 / np.pi / np.sqrt(whole - 4 * self.sigma**2)
        self.sigma, self.theta = value, slope * self.theta
        return self

    def copy(self):
        made = object.__new__(Matrices)
        made.__dict__.update(self.__dict__)
        return made

    def plus(self, other):
        self.sigma, self.theta = self.sigma + other.sigma, self.theta + other.theta
        return self

    def flatten(self):
        blocks = (self.points, self.positions) * 2
        self.sigma, self.theta = (
            np.einsum("ipjp->ij", part.reshape(blocks)) / self.positions
            for part in (self.sigma, self.theta)
        )
        self.fan, self.positions = self.fan * self.positions, 1
        return self

    def pool(self):
        blocks = (self.points, self.positions) * 2
        self.sigma, self.theta = (
            part.reshape(blocks).mean(axis=(1, 3)) for part in (self.sigma, self.theta)
        )
        self.positions = 1
        return self


@pytest.mark.parametrize(
    ("parameterization", "activation", "padding", "pooled"),
    [
        ("nth", "erf", "SAME", False),
        ("ntk", "relu", "CIRCULAR", True),
        ("standard", "erf", "VALID", True),
        ("standard", "relu", "SAME", False),
    ],
)
def test_convolutions_are_products_with_matrices(
    parameterization, activation, padding, pooled
):
    other = Matrices(SIGNALS, parameterization, activation)
    other.conv(3, 1.4, 0.5, stride=2, padding=padding)
    branch = other.copy().act().conv(1, 1.2)
    other.plus(branch).act().conv(2, 1.1, 0.5, padding=padding).act()
    other = other.pool() if pooled else other.flatten()
    other = other.dense(1.3).act().dense(0.9, 0.5)
    layers = [
        Conv(3, 1.4, stride=2, padding=padding, **BIAS),
        Residual([Activation(activation), Conv(1, 1.2)]),
        Activation(activation),
        Conv(2, 1.1, padding=padding, **BIAS),
        Activation(activation),
        GlobalAveragePool() if pooled else Flatten(),
        Dense(1.3),
        Activation(activation),
        Dense(0.9, **BIAS),
    ]
    found = network_kernels(layers, SIGNALS, parameterization=parameterization)
    # The angles of arccos lose half of their digits where points coincide.
    tolerance = 1e-7 if activation == "relu" else 1e-12
    np.testing.assert_allclose(found.nngp, other.sigma, rtol=tolerance)
    np.testing.assert_allclose(found.ntk, other.theta, rtol=tolerance)


def test_sums_over_nodes_and_two_dimensions():
    """erf under another name, whose moments are not known, on images."""
    images = RNG.normal(size=(2, 1, 2, 3))

    def layers(activation):
        return [
            Conv((1, 2), 1.2),
            Activation(activation),
            Conv(2, 1.1, padding="VALID"),
            GlobalAveragePool(),
        ]

    closed = network_kernels(layers("erf"), images)
    summed = network_kernels(layers(eqx.nn.Lambda(erf)), images)
    np.testing.assert_allclose(summed.nngp, closed.nngp, rtol=1e-12)
    np.testing.assert_allclose(summed.ntk, closed.ntk, rtol=1e-12)


# ---------------------------------------------------------- finite networks of channels


class ResidualNetwork(eqx.Module):
    """h ← h + W₂ φ(W₁ φ(h)), twice, in the "ntk" parameterization."""

    first: jax.Array
    blocks: list[list[jax.Array]]
    last: jax.Array

    def __init__(self, width: int, key: jax.Array):
        keys = jax.random.split(key, 6)
        self.first = jax.random.normal(keys[0], (width, 4))
        square = [jax.random.normal(key, (width, width)) for key in keys[1:5]]
        self.blocks = [square[:2], square[2:]]
        self.last = jax.random.normal(keys[5], (width,))

    def __call__(self, x: jax.Array) -> jax.Array:
        root = len(self.last) ** 0.5
        h = 2.0 / 2 * (self.first @ x)
        for block in self.blocks:
            branch = 1 / root * (block[0] @ jnp.sin(h))
            h = h + 1 / root * (block[1] @ jnp.sin(branch))
        return jnp.vdot(self.last, jnp.sin(h)) / root


RESIDUAL = [
    Dense(2.0),
    *[Residual([Activation("sin"), Dense(), Activation("sin"), Dense()])] * 2,
    Activation("sin"),
    Dense(),
]


class ConvolutionalNetwork(eqx.Module):
    """Two convolutions with three places, in the "standard" parameterization."""

    convs: list[jax.Array]
    last: jax.Array
    pooled: bool = eqx.field(static=True)

    def __init__(self, channels: int, pooled: bool, key: jax.Array):
        keys = jax.random.split(key, 3)
        shapes = ((channels, 2, 3), (channels, channels, 3))
        self.convs = [
            2.0 * jax.random.normal(key, shape) / math.sqrt(3 * shape[1])
            for key, shape in zip(keys[:2], shapes, strict=True)
        ]
        fan_in = channels if pooled else 5 * channels
        self.last = jax.random.normal(keys[2], (fan_in,)) / fan_in**0.5
        self.pooled = pooled

    def __call__(self, x: jax.Array) -> jax.Array:
        for weight in self.convs:
            padded = jnp.pad(x, ((0, 0), (1, 1)))
            places = jnp.stack([padded[:, k : k + 5] for k in range(3)], axis=1)
            x = erf(jnp.einsum("ock,ckp->op", weight, places))
        features = jnp.mean(x, axis=1) if self.pooled else x.ravel()
        return jnp.vdot(self.last, features)


def convolutional(pooled: bool) -> list[Any]:
    block = [Conv(3, 2.0), Activation("erf")]
    return [*block, *block, GlobalAveragePool() if pooled else Flatten(), Dense()]


def mean_ntk(make: Any, x: Any, samples: int) -> tuple[float, float]:
    """The mean of a network's NTK, summed over two points, and its standard error."""

    def of_key(key: jax.Array) -> jax.Array:
        gradient = eqx.filter_grad(lambda network: network(x[0]) + network(x[1]))
        squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient(make(key)))]
        return jnp.sum(jnp.stack(squares))

    keys = jax.random.split(jax.random.key(0), samples)
    draws = jax.jit(lambda keys: jax.lax.map(of_key, keys, batch_size=1000))(keys)
    return float(jnp.mean(draws)), float(jnp.std(draws)) / samples**0.5


@pytest.mark.parametrize("kind", ["residual", "flatten", "pool"])
def test_the_mean_ntk_tends_to_it_as_one_over_the_width(kind):
    pooled = kind == "pool"
    x, layers = SIGNALS, convolutional(pooled)
    options: Any = {"parameterization": "standard"}
    if kind == "residual":
        x, layers, options = FLAT, RESIDUAL, {"parameterization": "ntk"}
    limit = float(jnp.sum(network_kernels(layers, x[:2], **options).ntk))
    x = jnp.asarray(x)
    samples = 12_000 if kind == "residual" else 4000
    gaps, errors = [], []
    for width in (4, 16):

        def make(key: jax.Array, width: int = width) -> Any:
            if kind == "residual":
                return ResidualNetwork(width, key)
            return ConvolutionalNetwork(width, pooled, key)

        mean, error = mean_ntk(make, x, samples)
        scale = 1 if kind == "residual" else width
        gaps.append(mean / scale - limit)
        errors.append(error / scale)
    exponent = np.log(gaps[1] / gaps[0]) / np.log(4)
    doubt = np.hypot(errors[0] / gaps[0], errors[1] / gaps[1]) / np.log(4)
    print(f"the mean NTK's distance falls as width^({exponent:.2f} ± {doubt:.2f})")
    assert doubt < 0.2
    assert abs(exponent + 1) < 0.15 + 2 * doubt  # the next order is a sixteenth


# ------------------------------------------------------------ accuracy and derivatives


def both_heads(activation: str) -> list[list[Any]]:
    block = [Conv(2, 1.4, **BIAS), Residual([Activation(activation), Conv(3, 0.7)])]
    heads = [Flatten()], [GlobalAveragePool(), Dense(1.2), Activation(activation)]
    return [[*block, Activation(activation), *head, Dense()] for head in heads]


def test_two_sets_and_float32():
    for layers in both_heads("relu"):
        whole = network_kernels(layers, SIGNALS)
        block = network_kernels(layers, SIGNALS[:1], SIGNALS[1:])
        single = network_kernels(layers, SIGNALS.astype(np.float32))
        assert single.ntk.dtype == jnp.float32
        for part in ("nngp", "ntk"):
            value = np.asarray(getattr(whole, part))
            np.testing.assert_array_equal(value, value.T)
            np.testing.assert_allclose(getattr(block, part), value[:1, 1:], rtol=1e-13)
            np.testing.assert_allclose(getattr(single, part), value, rtol=1e-3)


def test_points_that_nearly_coincide():
    """ReLU's slope is linear in the angle: distances of 1e-6 and 1e-8 of a signal give
    changes of the NTK that are proportional to them, to half of the digits of 1e-8."""
    layers = both_heads("relu")[0]
    x = SIGNALS[:1]
    move = RNG.normal(size=x.shape)

    def change(step: float) -> float:
        moved = network_kernels(layers, x, np.concatenate([x, x + step * move]))
        return float(moved.ntk[0, 0] - moved.ntk[0, 1])

    # The part that is linear and odd in the step is removed by a step of other sign.
    kinks = [change(h) + change(-h) for h in (1e-4, 1e-6)]
    np.testing.assert_allclose(kinks[0] / kinks[1], 100, rtol=1e-3)


def test_slopes_where_points_coincide():
    x = jnp.asarray(np.concatenate([SIGNALS[:1], SIGNALS[:1], 2 * SIGNALS[1:2]]))
    direction = jnp.asarray(RNG.normal(size=x.shape))
    weights = jnp.cos(jnp.arange(9.0)).reshape(3, 3)

    @jax.jit
    def total(step: jax.Array, sigma: jax.Array) -> jax.Array:
        value = jnp.zeros(())
        for layers in both_heads("erf"):
            changed = [*layers[:-1], Dense(sigma)]
            found = network_kernels(changed, x + step * direction)
            value += jnp.vdot(weights, found.ntk) + jnp.vdot(weights, found.nngp)
        return value

    point = jnp.asarray(0.0), jnp.asarray(1.2)
    slopes = jax.jit(jax.grad(total, (0, 1)))(*point)
    for slope, expected in zip(slopes, central_slopes(total, point), strict=True):
        np.testing.assert_allclose(slope, expected, rtol=1e-7)


def test_trained_networks():
    """The law of trained networks takes these kernels: with the ridge going to 0, the
    posterior is its end."""
    problem = nth.Problem(SIGNALS[:2], np.array([1.0, -1.0]), SIGNALS[2:])
    kernels = network_kernels(both_heads("erf")[1], problem.x)
    law = nth.infinite.ensemble(kernels, problem, [0.0, jnp.inf], points="test")
    quiet = nth.infinite.posterior(kernels, problem, noise=1e-10)
    np.testing.assert_allclose(law.mean[1], quiet.mean, atol=1e-7)
    assert law.covariance is not None
    np.testing.assert_allclose(law.covariance[1], quiet.covariance, atol=1e-7)
    solved = nth.closed_form(nth.infinite.as_kernels(kernels, problem), problem, [9.0])
    mean = nth.infinite.ensemble(kernels, problem, [9.0, jnp.inf]).mean
    np.testing.assert_allclose(mean[1, :2], problem.y_train, atol=1e-9)
    np.testing.assert_allclose(solved.test[0], mean[0, 2:], atol=1e-12)


def test_bad_layers(without_type_checks):
    act = Activation("erf")

    def refused(words: str, layers: Any, x: Any = SIGNALS, **options: Any) -> None:
        with pytest.raises(ValueError, match=words):
            network_kernels(layers, x, **options)

    refused("layers must be a list of layers", [])
    refused("layers must be a list of layers", [Dense(), "relu"], FLAT)
    refused(r"Put Flatten\(\) or GlobalAveragePool\(\) before it", [Dense()])
    refused("Conv follows activations without positions", [Conv(3)], FLAT)
    refused("GlobalAveragePool follows activations", [GlobalAveragePool()], FLAT)
    refused("Activation follows inputs", [act, Dense()], FLAT)
    refused("Activation follows features", [Dense(), act, act], FLAT)
    refused("layers end in features", [Dense(), act], FLAT)
    refused(r"layers end in gaussian with positions \(5,\)", [Conv(3)])
    refused("kernel_size .* give a smaller", [Conv(6), Flatten(), Dense()])
    refused("give one number for each", [Conv((2, 2)), Flatten(), Dense()])
    refused("Residual adds the inputs", [Residual([Dense()])], FLAT)
    refused("Residual adds .* shortcut", [Conv(2), Residual([act, Conv(2, stride=2)])])
    refused(r"x1 must have shape \(points, d\)", [Dense()], FLAT[0])
    refused("x2 has inputs of size", [Dense()], FLAT, x2=FLAT[:, :2])
    refused("too rough or too steep", [Dense(), Activation(jnp.abs), Dense()], FLAT)
    refused("nodes must be odd", [Dense(), Activation(), Dense()], FLAT, nodes=10)
    with pytest.raises(ValueError, match=r"layers of Residual must end in Dense"):
        Residual([Dense(), act])
    with pytest.raises(ValueError, match="padding must be one of"):
        Conv(3, padding="same")  # pyright: ignore
    with pytest.raises(ValueError, match="kernel_size must be at least 1"):
        Conv(0)
    with pytest.raises(ValueError, match="sigma_w must be"):
        Dense(-1.0)
