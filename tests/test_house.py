"""The house: which module may import which, read with `ast`."""

import ast
import functools
from pathlib import Path

import nth

FOLDER = Path(nth.__file__).parent

# In the order of the data's way: a module imports from the rows above it alone.
ROWS = [
    "_types",
    "_errors",
    "_warn",
    "_jaxpr",
    "_inputs",
    "_eigen",
    "_loss",
    "_checkpoint",
    "_problem",
    "_activation",
    "_mlp",
    "_modules",
    "_network_checks",
    "_network",
    "_rates",
    "_memory",
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
    "_integrate",
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
    "__init__",
    "__main__",
]
# Imported inside a method, for an optional dependency: the way does not bend back.
LAZY = {("_comparison", "_plot")}


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


def test_only_integrate_imports_diffrax():
    users = {name for name, tree in parsed().items() if "diffrax" in imports(tree)[1]}
    assert users == {"_integrate"}


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
