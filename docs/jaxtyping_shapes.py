"""A Griffe extension: a jaxtyping shape is a string, and no type to be parsed."""

import ast
from typing import Any

import griffe


def _expression(node: ast.expr | None, parent: Any, old: Any) -> Any:
    if node is None or "[Array, '" not in ast.unparse(node):
        return old
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            part.value = part.value.strip()  # " T" is so written for linters alone
    return griffe.safe_get_expression(node, parent=parent, parse_strings=False)


class JaxtypingShapes(griffe.Extension):
    """Rereads the annotations that hold a shape, and keeps their strings."""

    def on_function_instance(self, *, node: Any, func: Any, **_: Any) -> None:
        arguments = node.args
        nodes = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        for argument in nodes:
            parameter = func.parameters[argument.arg]
            parameter.annotation = _expression(
                argument.annotation, func.parent, parameter.annotation
            )
        func.returns = _expression(node.returns, func.parent, func.returns)

    def on_attribute_instance(self, *, node: Any, attr: Any, **_: Any) -> None:
        if isinstance(node, ast.AnnAssign):
            attr.annotation = _expression(node.annotation, attr.parent, attr.annotation)
        elif isinstance(node, ast.FunctionDef):  # a property
            attr.annotation = _expression(node.returns, attr.parent, attr.annotation)
