"""Pandas, which is imported when the first table is requested."""

from types import ModuleType


def require_pandas(method: str) -> ModuleType:
    """The module; an `ImportError` that says what to install if it is missing."""
    try:
        import pandas
    except ImportError:
        raise ImportError(
            f"{method} needs pandas: pip install 'neural-tangent-hierarchy[examples]'"
        ) from None
    return pandas
