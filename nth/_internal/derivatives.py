"""Functions that refuse to be differentiated."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

Tree = TypeVar("Tree")


def refusing_derivatives(message: str) -> Callable[[Tree], Tree]:
    """The identity on pytrees, which raises `ValueError` where it is differentiated."""

    @jax.custom_jvp
    def identity(tree: Any) -> Any:
        return tree

    @identity.defjvp
    def _refuse(primals: Any, tangents: Any) -> Any:
        raise ValueError(message)

    return identity
