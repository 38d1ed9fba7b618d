"""The part of a pytree that is not an array, as a static field."""

from typing import Any

import jax
from jaxtyping import PyTree


class Static:
    """The non-array part of a pytree, compared and hashed by structure and leaves."""

    def __init__(self, tree: PyTree):
        self.tree = tree

    def _key(self) -> Any:
        leaves, treedef = jax.tree.flatten(self.tree)
        return treedef, tuple(leaves)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())
