"""Calls as configs write them, `knn('folder:PATH', k=10)|real`: Python's syntax, literals alone."""

import ast
import inspect
from collections.abc import Mapping
from typing import Any

from vit_jax.errors import UserError, nearest


def made(text: str, kinds: Mapping[str, Any], what: str, hint: str) -> list[Any]:
    """What each call of `a(…)|b(…)` makes, by the kind of its name.

    Raises UserError: text that cannot be read, no such kind (with the nearest), or arguments that
    a kind refuses with TypeError or ValueError.
    """
    found = []
    for node in _parts(text, what, hint):
        call = ast.Call(node, [], []) if isinstance(node, ast.Name) else node
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise UserError(f"{what} {text!r}: {hint}")
        name = call.func.id
        if name not in kinds:
            raise UserError(f"unknown {what} {name!r}: {nearest(name, kinds)}")
        try:
            arguments = [_literal(one) for one in call.args]
            options = {str(one.arg): _literal(one.value) for one in call.keywords}
            found.append(kinds[name](*arguments, **options))
        except (TypeError, ValueError) as error:
            takes = ", ".join(map(str, inspect.signature(kinds[name]).parameters))
            raise UserError(f"{what} {name}: {error} (it takes {takes})") from error
    return found


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        told = ast.unparse(node)
        raise ValueError(f"{told} is no text in quotes, number or list of them") from None


def _parts(text: str, what: str, hint: str) -> list[ast.expr]:
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise UserError(f"{what} {text!r} cannot be read ({error.msg}): {hint}") from error
    parts: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        parts.append(node.right)
        node = node.left
    return [node, *reversed(parts)]
