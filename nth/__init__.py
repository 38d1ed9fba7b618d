"""Predict how a finite-width network trains, without training it.

The truncated Neural Tangent Hierarchy (Huang & Yau, ICML 2020), at every level. Public
names are loaded when the first of them is used, so that `import nth` takes no time and
`python -m nth --help` does not wait for JAX.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

__version__ = _version("neural-tangent-hierarchy")

# What takes the place of names of earlier versions.
_REMOVED = {
    "GradientDescent": "take an optimizer of Optax, such as optax.sgd(0.1, momentum="
    "0.9), with optax.add_decayed_weights before it for weight decay, and give "
    "batch_size and key to nth.solve_discrete",
    "gradient_descent": "it is nth.train, which takes an optimizer of Optax",
    "Loss": "it is nth.CustomLoss",
}

if TYPE_CHECKING:
    from ._api import *  # noqa: F403

else:  # a type checker that saw `__getattr__` would let any name pass

    def _load() -> list[str]:
        """Make the names of `nth._api` attributes of this module, and return them."""
        api = vars(_import_module("._api", __name__))
        public = [name for name in api if not name.startswith("_")]
        for name in public:
            globals().setdefault(name, api[name])
        return public

    def __getattr__(name: str) -> object:
        if name == "__all__":  # what `from nth import *` imports
            return _load()
        # Python and IPython look up private names that no module has: load nothing.
        if not name.startswith("_") and name in _load():
            return globals()[name]
        cure = f": {_REMOVED[name]}" if name in _REMOVED else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{cure}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_load()})
