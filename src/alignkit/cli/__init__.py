"""The command line: names and flags only; everything heavy is imported by the command that needs it.

The words of a command are in the file that names it on its first line; `program.py` has them all in order.
"""

from alignkit.cli.program import app, main
from alignkit.cli.stages import STAGES

__all__ = ["STAGES", "app", "main"]
