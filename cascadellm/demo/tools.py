"""The two demo tools, their schemas and a safe calculator."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _schema(name: str, description: str, argument: str) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "properties": {argument: {"type": "string"}},
                "required": [argument],
                "type": "object",
            },
        },
    }


CALCULATOR = _schema("calculator", "Evaluate an arithmetic expression.", "expression")
LOOKUP = _schema("lookup", "Look up facts about a name.", "name")


def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression.

    Args:
        expression: Numbers, + - * / and parentheses.

    Returns: The value; without a fraction where it is whole.

    Raises:
        ValueError: If the text is no such expression.
    """
    try:
        value = _evaluate(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ZeroDivisionError, RecursionError) as error:
        raise ValueError(f"not an arithmetic expression: {expression!r}") from error
    return str(int(value)) if value == int(value) else str(round(value, 6))


def _evaluate(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand)
    raise ValueError(f"not an arithmetic expression: {ast.dump(node)[:60]}")
