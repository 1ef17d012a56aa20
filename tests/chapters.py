"""What a chapter defines, without running it: for tests of a notebook's functions."""

import ast
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def definitions(chapter):
    """The imports, functions and constants (capital letters) of a notebook's script, by name."""
    names, script = {"__name__": "chapter"}, NOTEBOOKS / f"{chapter}.py"
    for node in ast.parse(script.read_text()).body:
        constant = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).isupper()
        if constant or isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef):
            exec(compile(ast.Module([node], []), str(script), "exec"), names)
    return names
