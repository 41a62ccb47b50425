"""The grammar of small languages in a config: `a|b(0.5)|my_package.my_module:c(k=10)`, and the
options of a source, `NAME?KEY=VALUE&KEY=VALUE`.

Pipelines, evaluators, distillation and ranges of a sweep are calls, in Python's syntax, whose
arguments are literals.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from vit_jax.errors import UserError, nearest, printable

PATH = re.compile(r"[\w.]+:\w+")  # an import path


def split(text: str, separator: str = "|") -> Iterator[str]:
    """The parts between separators outside of brackets and quotes, without empty ones."""
    part, pieces = "", text.split(separator)
    for number, piece in enumerate(pieces, 1):
        part += piece
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", part)  # without what is quoted
        opened = sum(map(bare.count, "([{")) - sum(map(bare.count, ")]}"))
        if number == len(pieces) or not (opened or "'" in bare or '"' in bare):
            if part.strip():
                yield part.strip()
            part = ""
        else:
            part += separator


def name_of(call: str) -> str:
    """The name of one call: what stands before its arguments, which may be an import path."""
    return call.partition("(")[0].strip()


def arguments_of(call: str) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of `a`, `a(224)` or `a(224, area_min=0.3)`.

    Raises SyntaxError where it is no call, ValueError for an argument that is no literal.
    """
    node = ast.parse(f"call{call.removeprefix(name_of(call)).strip() or '()'}", mode="eval").body
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise SyntaxError("it is no call")
    options = {str(option.arg): _literal(option.value) for option in node.keywords}
    return [_literal(argument) for argument in node.args], options


def made(
    text: str, kinds: Mapping[str, Any], what: str, hint: str,
    own: Callable[[str], Any] | None = None,
) -> list[Any]:  # fmt: skip
    """What each call of `a(…)|b(…)` makes, by the kind of its name. `own` gives the kind of an
    import path; without it, there are none.

    Raises UserError: text that cannot be read, no such kind (with the nearest), or arguments that
    a kind refuses with TypeError or ValueError.
    """
    results = []
    for call in split(text):
        name = name_of(call)
        by_path = own is not None and PATH.fullmatch(name) is not None
        if not by_path and not name.isidentifier():
            raise UserError(f"{what} {text!r}: {hint}")
        if not by_path and name not in kinds:
            raise UserError(f"unknown {what} {name!r}: {nearest(name, kinds)}")
        kind = own(name) if own and by_path else kinds[name]
        try:
            arguments, options = arguments_of(call)
            results.append(kind(*arguments, **options))
        except SyntaxError as error:
            raise UserError(f"{what} {text!r} cannot be read ({error.msg}): {hint}") from error
        except (TypeError, ValueError) as error:
            takes = ", ".join(map(str, inspect.signature(kind).parameters))
            raise UserError(f"{what} {name}: {error} (it takes {takes})") from error
    if not results:
        raise UserError(f"{what} {text!r}: {hint}")
    return results


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        told = ast.unparse(node)
        raise ValueError(f"{told} is no text in quotes, number or list of them") from None


def options_apart(text: str) -> tuple[str, str]:
    """`NAME` and `KEY=VALUE&…` of `NAME?KEY=VALUE&…`. A `?` that no `KEY=` follows belongs to the
    name, which may be a path.

    >>> options_apart("what?/t.csv?label=kind")
    ('what?/t.csv', 'label=kind')
    """
    name, *options = re.split(r"\?(?=\w+=)", text, maxsplit=1)
    return name, "".join(options)


def queried(spec: str, keys: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The two parts of `NAME?KEY=VALUE&…`. In a value, `%26` stands for `&` and `%25` for `%`.

    Raises UserError: a key is none of `keys`, or stands twice.
    """
    name, text = options_apart(spec)
    options: dict[str, str] = {}
    for pair in text.split("&") if text else ():
        key, _, value = pair.partition("=")
        if key not in keys:
            usual = [f"{key}=" for key in keys]
            some = " or ".join(filter(None, (", ".join(usual[:-1]), usual[-1])))
            stand = "stand" if usual[1:] else "stands"
            raise UserError(f"{printable(spec)}: after ? {stand} {some}, not {printable(key)}=")
        if key in options:
            raise UserError(f"{printable(spec)}: {key}= stands there twice")
        options[key] = unquote(value)
    return name, options


def and_queried(spec: str, key: str, value: object) -> str:
    """The name of a source with one more option."""
    return f"{spec}{'&' if options_apart(spec)[1] else '?'}{key}={value}"
