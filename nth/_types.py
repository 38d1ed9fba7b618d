"""Array types, and the letters that stand for axes throughout.

| letter | axis                                                            |
|--------|-----------------------------------------------------------------|
| `n`    | training points                                                 |
| `q`    | test points                                                     |
| `m`    | all points, n + q, training points first                        |
| `*out` | the outputs of one point: nothing for a scalar network, C for C |
| `*in`  | one input, where inputs are one array                           |
| `T`    | requested times                                                 |

| symbol | name in the code     | meaning                                          |
|--------|----------------------|--------------------------------------------------|
| f      | `outputs`            | network outputs, `(m, *out)`                     |
| θ      | `params`             | trainable parameters, a pytree                   |
| K⁽ʳ⁾   | `kernels[r]`         | r-th kernel, one slot `(points, *out)` per index |
| p      | `order`              | level at which the hierarchy is cut              |
| ℓ, L   | `loss`               | loss of one point, and its mean over n           |
| g      | `loss.gradient(...)` | ∂L/∂f on the training points; the 1/n is in here |
| D      | `lift`               | the operator that makes K⁽ʳ⁺¹⁾ of K⁽ʳ⁾           |
"""

from typing import Any, TypeAlias

from jaxtyping import Array, Float, PyTree, Shaped

Inputs: TypeAlias = PyTree[Shaped[Array, "_ ..."]]
"""Points: an array `(points, *in)`, or a pytree of arrays with one leading axis."""

Params: TypeAlias = PyTree[Any]
State: TypeAlias = PyTree[Any]
Scalar: TypeAlias = Float[Array, ""]
