"""Execute the code cells of a notebook as IPython does, in the current folder: python notebook.py NOTEBOOK.

Cells share one namespace and run beside an event loop, so that `await` works outside of functions and a library that
starts a loop of its own is seen to fail. The value of a cell's last expression is printed.
"""

import ast
import asyncio
import json
import sys
from inspect import isawaitable
from pathlib import Path
from typing import Any


def code_cells(path: Path) -> list[str]:
    notebook = json.loads(path.read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


async def run_cell(name: str, source: str, namespace: dict[str, Any]) -> None:
    module = ast.parse(source, name)
    if isinstance(module.body[-1], ast.Expr):
        module.body[-1] = ast.Assign([ast.Name("_", ast.Store())], module.body[-1].value)
        ast.fix_missing_locations(module)
    namespace["_"] = None
    result = eval(compile(module, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), namespace)
    if isawaitable(result):
        await result
    if namespace["_"] is not None:
        print(namespace["_"])


async def run_notebook(path: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(code_cells(path), 1):
        await run_cell(f"{path.name}, code cell {number}", source, namespace)


if __name__ == "__main__":
    asyncio.run(run_notebook(Path(sys.argv[1])))
