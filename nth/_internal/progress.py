"""Progress bars, which appear once work has taken a few seconds."""

from typing import Any

from tqdm.auto import tqdm

# Seconds before a bar is shown.
DELAY = 5


def delayed_bar(**options: Any) -> tqdm:
    """A bar of `tqdm` with `options`, shown after `DELAY` seconds."""
    return tqdm(delay=DELAY, **options)
