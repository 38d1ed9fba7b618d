"""The package: which module may import which, what `import nth` loads, and extras."""

import ast
import functools
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from jaxtyping import TypeCheckError

import nth
from nth._eigen import rounding_of

FOLDER = Path(nth.__file__).parent
ROOT = FOLDER.parent

# In the order of the data's way: a module imports from the rows above it alone.
ROWS = [
    "_types",
    "_errors",
    "_warn",
    "_jaxpr",
    "_inputs",
    "_eigen",
    "_loss",
    "_archive",
    "_checkpoint",
    "_problem",
    "_activation",
    "_modules",
    "_network_checks",
    "_network",
    "_rates",
    "_memory",
    "_mlp",
    "_layers",
    "_passes",
    "_layerwise",
    "_lift",
    "_points",
    "_jacobian",
    "_finite",
    "_form",
    "_kernels",
    "_contract",
    "_project",
    "_spectrum",
    "_taylor",
    "_series",
    "_dynamics",
    "_descent",
    "_hierarchy",
    "_blocks",
    "_matrix_free",
    "_exponentials",
    "_closed_form",
    "_perturbative",
    "_gauss",
    "_recursion",
    "infinite",
    "_taylorized",
    "_flow",
    "_window",
    "_solution",
    "_stretches",
    "_options",
    "_diagnosis",
    "_outcome",
    "_integrate",
    "_saving",
    "_evolution",
    "_assumptions",
    "_bounds",
    "_motion",
    "theory",
    "_solve",
    "_rule",
    "_curvature",
    "_steps",
    "_discrete",
    "_catapult",
    "_table",
    "_comparison",
    "_compare",
    "scaling",
    "_plot",
    "_api",
    "__init__",
    "_dataset",
    "__main__",
]
# Imported inside a method: for an optional dependency, or because files of solutions
# need `RESULTS`.
LAZY = {("_comparison", "_plot"), ("_solution", "_saving")}


def imports(tree):
    """(modules of this package, other packages) that a file imports at run time."""
    inside, outside = set(), set()
    checked_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in checked_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            inside |= {node.module} if node.module else {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            outside.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
    return inside, outside


@functools.cache
def parsed():
    return {path.stem: ast.parse(path.read_text()) for path in FOLDER.glob("*.py")}


def test_every_module_has_a_row_and_says_what_it_is():
    assert sorted(parsed()) == sorted(ROWS)
    assert all(ast.get_docstring(tree) for tree in parsed().values())


def test_no_import_goes_back_up():
    for name, tree in parsed().items():
        for other in imports(tree)[0]:
            if (name, other) not in LAZY:
                assert ROWS.index(other) < ROWS.index(name), (name, other)


def test_only_integration_imports_diffrax():
    users = {name for name, tree in parsed().items() if "diffrax" in imports(tree)[1]}
    assert users == {"_options", "_outcome", "_integrate"}


def test_optional_dependencies_are_not_imported_by_the_library():
    for name in set(ROWS) - {"_plot", "__main__"}:
        eager = ast.Module([n for n in parsed()[name].body], [])
        top = {n for n in eager.body if isinstance(n, ast.Import | ast.ImportFrom)}
        names = imports(ast.Module(list(top), []))[1]
        assert not names & {"matplotlib", "sklearn", "click", "xarray"}, name


def test_public_names_are_the_contract():
    """Section 5 of the design, to the letter."""
    names = (
        "Problem MLP from_apply kernels Kernels DenseHierarchy MatrixFreeHierarchy "
        "GradientFlow integrate "
        "Solution solve gradient_flow compare Comparison SquaredError "
        "SoftmaxCrossEntropy LogisticLoss Loss softplus"
    )
    assert all(hasattr(nth, name) for name in names.split())


def printed(script: str) -> str:
    """What `script` prints in a Python of its own."""
    command = [sys.executable, "-c", script]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_import_loads_nothing_until_a_name_is_used():
    script = """
import sys, nth
heavy = ("jax", "numpy", "scipy", "diffrax", "matplotlib")
print([m for m in heavy if m in sys.modules])
print(hasattr(nth, "_ipython_canary_method_should_not_exist_"), "jax" in sys.modules)
nth.MLP, nth.solve, nth.infinite.kernels
slow = ("scipy.stats", "scipy.optimize", "scipy.sparse.linalg", "matplotlib")
print([m for m in slow if m in sys.modules])
"""
    assert printed(script) == "[]\nFalse False\n[]\n"


def test_star_import_and_dir_have_every_public_name():
    script = """
import nth
names = {n for n in dir(nth) if not n.startswith("_")} - {"TYPE_CHECKING"}
from nth import *
print(names == set(nth.__all__) and names <= set(globals()), len(names) > 40)
print(MLP is nth.MLP, infinite is nth.infinite)
"""
    assert printed(script) == "True True\nTrue True\n"


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match=r"^module 'nth' has no attribute 'mlp'$"):
        nth.mlp  # noqa: B018  # pyright: ignore
    with pytest.raises(ImportError, match="cannot import name 'mlp' from 'nth'"):
        from nth import mlp  # noqa: F401  # pyright: ignore


def test_public_classes_pickle():
    for name in nth.__all__:  # pyright: ignore
        if isinstance(value := getattr(nth, name), type):
            assert pickle.loads(pickle.dumps(value)) is value


def test_lazy_modules_are_instrumented():
    """Jaxtyping's import hook, an option of pytest, reaches what loads later."""
    with pytest.raises(TypeCheckError):
        rounding_of("no array")  # pyright: ignore


def test_commands_that_install_name_the_distribution_and_its_extras():
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    texts = [ROOT / "README.md", *FOLDER.glob("**/*.py"), *ROOT.glob("docs/**/*.md")]
    commands = [
        (path.name, command)
        for path in texts
        for command in re.findall(r"pip install ([^`\n&#]+)", path.read_text())
    ]
    assert len(commands) >= 7
    for command in commands:
        found = re.match(r"'([\w.-]+)\[(\w+)\]'", command[1])
        assert found is not None, command
        assert found[1] in (project["name"], "."), command
        assert found[2] in project["optional-dependencies"], command
