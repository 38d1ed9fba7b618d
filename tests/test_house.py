"""The package: which package may import which, what `import nth` loads, and extras."""

import ast
import functools
import graphlib
import importlib
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from jaxtyping import TypeCheckError

import nth
from nth._internal.eigenvalues import rounding_of

FOLDER = Path(nth.__file__).parent
ROOT = FOLDER.parent

# The packages in the order of a computation. A module imports from its own package and
# from those before it.
PACKAGES = [
    "_custom_types",
    "_internal",
    "_problem",
    "_network",
    "_kernels",
    "_dynamics",
    "plot",
    "_solution",
    "_analytic",
    "infinite",
    "_integrate",
    "theory",
    "_solve",
    "_discrete",
    "_compare",
    "scaling",
    "testing",
    "_api",
    "__init__",
    "_command_line",
    "__main__",
]


@functools.cache
def modules() -> dict[tuple[str, ...], ast.Module]:
    """The syntax tree of each module, by path, such as `("_kernels", "kernels")`."""
    return {
        path.relative_to(FOLDER).with_suffix("").parts: ast.parse(path.read_text())
        for path in FOLDER.rglob("*.py")
    }


def imports(
    name: tuple[str, ...], tree: ast.AST
) -> tuple[set[tuple[str, ...]], set[str]]:
    """(modules of this package, other packages) that a module imports at run time."""
    inside: set[tuple[str, ...]] = set()
    outside: set[str] = set()
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
            base = name[: len(name) - node.level]
            path = tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                target = (*base, *path)
                inner = (*target, alias.name)
                inside.add(inner if inner in modules() or not path else target)
        elif isinstance(node, ast.ImportFrom):
            outside.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
    return inside, outside


def test_every_module_belongs_to_a_package_and_has_a_docstring():
    assert {name[0] for name in modules()} == set(PACKAGES)
    assert all(ast.get_docstring(tree) for tree in modules().values())


def test_packages_import_from_earlier_packages_only():
    for name, tree in modules().items():
        for other in imports(name, tree)[0]:
            if other[0] != name[0]:
                order = PACKAGES.index(other[0]), PACKAGES.index(name[0])
                assert order[0] < order[1], (name, other)


def test_modules_of_a_package_do_not_import_each_other_in_a_circle():
    """Imports at the top of modules; a method may import what uses its class."""
    graph = {
        name: imports(name, ast.Module([n for n in tree.body if is_import(n)], []))[0]
        for name, tree in modules().items()
        if name[0] != "__init__"
    }
    graphlib.TopologicalSorter(graph).prepare()


def is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def test_only_integration_imports_diffrax():
    users = {
        name[0]
        for name, tree in modules().items()
        if "diffrax" in imports(name, tree)[1]
    }
    assert users == {"_integrate"}


def test_optional_dependencies_are_not_imported_by_the_library():
    for name, tree in modules().items():
        drawing = name[0] == "plot" and name[1] not in ("__init__", "_style")
        if name[0] == "_command_line" or drawing:
            continue  # modules of `plot` are imported by its methods
        top = ast.Module([node for node in tree.body if is_import(node)], [])
        outside = imports(name, top)[1]
        assert not outside & {"matplotlib", "sklearn", "click", "pandas", "xarray"}, (
            name
        )


def classes() -> list[type]:
    """Every class of the library."""
    members = []
    for name in modules():
        if name[-1] != "__main__":
            module = importlib.import_module(".".join(("nth", *name)))
            members += [c for c in vars(module).values() if isinstance(c, type)]
    return [c for c in members if c.__module__.startswith("nth.")]


def is_method(member: object) -> bool:
    return callable(member) or isinstance(member, property | classmethod | staticmethod)


def test_classes_are_abstract_or_final():
    """No concrete method is overridden, and no method calls that of a base class."""
    for kind in classes():
        for base in kind.__mro__[1:]:
            if base.__module__.startswith("nth."):
                abstract = getattr(base, "__abstractmethods__", frozenset())
                common = {n for n in vars(kind).keys() & vars(base) if n[:2] != "__"}
                overridden = {n for n in common if is_method(vars(base)[n])}
                assert overridden <= abstract, (kind, base)
    for name, tree in modules().items():
        called = {n.func for n in ast.walk(tree) if isinstance(n, ast.Call)}
        assert "super" not in {getattr(f, "id", None) for f in called}, name


def documented() -> set[str]:
    """The names that the API pages of the documentation show."""
    pages = (ROOT / "docs").rglob("*.md")
    names = {
        n for p in pages for n in re.findall(r"^::: nth\.(\w+)", p.read_text(), re.M)
    }
    return names


def test_public_names_are_the_documented_ones():
    names = set(nth.__all__) - {"jaxtyping"}  # pyright: ignore  # the import hook's
    assert names == documented()


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
    with pytest.raises(AttributeError, match=r"'gradient_descent': it is nth\.train"):
        nth.gradient_descent  # noqa: B018  # pyright: ignore
    with pytest.raises(AttributeError, match=r"'GradientDescent': take an optimizer"):
        nth.GradientDescent  # noqa: B018  # pyright: ignore
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
        match = re.match(r"'([\w.-]+)\[(\w+)\]'", command[1])
        assert match is not None, command
        assert match[1] in (project["name"], "."), command
        assert match[2] in project["optional-dependencies"], command
