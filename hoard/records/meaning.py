"""What an algorithm file says, apart from how it says it."""

from __future__ import annotations

import ast
import hashlib
from typing import Any

# What a file tells the runner beside its training. The values of a preset, or of a trial, stand in the run's config.
_ASIDE = ("PRESETS", "SEARCH")


def meaning_hash(source: str) -> str:
    """SHA-256 of what a source says to Python: its syntax tree without docstrings. Comments and layout do not count.

    Neither do presets and search space, unless the file's own code reads them.
    """
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if _assigned(node) not in set(_ASIDE) - _read(tree)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return hashlib.sha256(_dump(tree).encode()).hexdigest()


def _assigned(node: ast.stmt) -> str | None:
    """The name that a statement gives a value to, if it is one plain name."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else None


def _read(tree: ast.Module) -> set[str]:
    """Names that are read anywhere but in the last lines, `if __name__ == "__main__": ...`."""
    guard = ast.dump(ast.parse('__name__ == "__main__"', mode="eval").body)
    inside = [node for node in tree.body if not (isinstance(node, ast.If) and ast.dump(node.test) == guard)]
    names = (node for statement in inside for node in ast.walk(statement) if isinstance(node, ast.Name))
    return {node.id for node in names if not isinstance(node.ctx, ast.Store)}


def _dump(node: Any) -> str:
    """A node and its fields, empty ones left out: the same text under every Python version."""
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields)
        inner = ",".join(f"{name}={_dump(value)}" for name, value in fields if value not in (None, []))
        return f"{type(node).__name__}({inner})"
    if isinstance(node, list):
        return f"[{','.join(map(_dump, node))}]"
    return repr(node)
