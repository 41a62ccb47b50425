"""Prints the constraints file for the Python that runs this."""

import pathlib
import sys

name = "constraints-3.11.txt" if sys.version_info < (3, 12) else "constraints-3.12.txt"
print(pathlib.Path(__file__).with_name(name))
