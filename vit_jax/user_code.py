"""The user's own classes and functions, named by import path."""

import importlib
import os
import sys
from typing import Any

from vit_jax.errors import UserError


def imported(path: str, what: str) -> Any:
    """The object at `package.module:NAME`; modules of the current folder are found too.

    Raises UserError where there is no such module or name.
    """
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script has only its own folder there
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module does
        if isinstance(error, AttributeError) and name in str(error) and module in str(error):
            raise UserError(f"{path}: the module has no {name!r}") from None
        raise UserError(f"{path}: {what} cannot be imported: {error}") from error
