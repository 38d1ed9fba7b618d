"""Array types, and the letters for axes used throughout.

| letter | axis                                                            |
|--------|-----------------------------------------------------------------|
| `n`    | training points                                                 |
| `q`    | test points                                                     |
| `m`    | all points, n + q, training points first                        |
| `*out` | the output of one point: `()` for a scalar network, `(C,)` for C |
| `*in`  | one input, if inputs are a single array                         |
| `T`    | requested times                                                 |

| symbol | name in the code     | meaning                                          |
|--------|----------------------|--------------------------------------------------|
| f      | `outputs`            | network outputs, `(m, *out)`                     |
| θ      | `params`             | trainable parameters, a pytree                   |
| K⁽ʳ⁾   | `kernels[r]`         | r-th kernel, one slot `(points, *out)` per index |
| p      | `order`              | level at which the hierarchy is truncated        |
| ℓ, L   | `loss`               | loss of one point, and its mean over n           |
| g      | `loss.gradient(...)` | ∂L/∂f on the training points, including the 1/n  |
| D      | `lift`               | the operator that maps K⁽ʳ⁾ to K⁽ʳ⁺¹⁾            |
"""

from typing import Any, TypeAlias

from jaxtyping import Array, Float, PyTree, Shaped

Inputs: TypeAlias = PyTree[Shaped[Array, "_ ..."]]
"""Points: an array `(points, *in)`, or a pytree of arrays that share a leading axis."""

Params: TypeAlias = PyTree[Any]
State: TypeAlias = PyTree[Any]
Scalar: TypeAlias = Float[Array, ""]
