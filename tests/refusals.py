"""What a command ends with that is refused."""


def refused(vit, *arguments) -> str:
    """The one line of a refusal with exit code 2. `vit` is the fixture of tests/conftest.py."""
    code, out, line = vit(*arguments)
    assert (code, out) == (2, ""), (out, line)
    assert line.startswith("vit: error: ")
    assert len(line.splitlines()) == 1, line
    return line
