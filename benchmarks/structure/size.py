"""How large the source is: `python benchmarks/structure/size.py [CHECKOUT]`.

Prints lines, statements (docstrings are none) and the share of lines that docstrings take.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path


def main() -> None:
    """Count every Python file below `src/` of a checkout; this one's without an argument."""
    checkout = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2]
    lines = statements = documented = 0
    for path in (checkout / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        lines += len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            statements += isinstance(node, ast.stmt) and not is_text
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
                first = node.body[0]
                documented += (first.end_lineno or first.lineno) - first.lineno + 1
    print(f"{lines:,} lines, {statements:,} statements, docstrings {documented / lines:.1%}")


if __name__ == "__main__":
    main()
