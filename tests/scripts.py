"""Scripts as users run them, several in one process: what they share is compiled once.

python tests/scripts.py FOLDER SCRIPT ...    # each with --small, in FOLDER
"""

import contextlib
import gc
import os
import runpy
import sys
import traceback
import warnings
from pathlib import Path
from unittest import mock

import jax
import matplotlib.pyplot as plt
from memory_maps import clear_caches_of_many_maps

# As in conftest.py: tracing creates many objects that live on.
gc.set_threshold(100_000, 50, 50)


def error_of(script: Path, folder: Path, *arguments: str) -> str:
    """The error of a script that runs in `folder`, "" if there is none. The next script
    finds the settings that this one found."""
    x64 = jax.config.read("jax_enable_x64")
    plt.switch_backend("agg")
    try:
        with (
            contextlib.chdir(folder),
            open(f"{script.stem}.txt", "w") as output,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
            warnings.catch_warnings(),
            mock.patch.dict(os.environ),
            mock.patch.object(sys, "argv", [str(script), *arguments]),
            mock.patch.object(sys, "path", [str(script.parent), *sys.path]),
        ):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:  # of a command, also of one that succeeds
        return traceback.format_exc() if end.code else ""
    except BaseException:
        return traceback.format_exc()
    finally:
        jax.config.update("jax_enable_x64", x64)
        plt.close("all")
        clear_caches_of_many_maps()
    return ""


if __name__ == "__main__":
    for name in sys.argv[2:]:
        print(name, flush=True)
        if error := error_of(Path(name).resolve(), Path(sys.argv[1]), "--small"):
            print(error)
            sys.exit(255)  # which ends xargs
