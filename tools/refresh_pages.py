"""Bring the tables that pages show up to date with the experiments: `python tools/refresh_pages.py [--check]`.

Between `<!-- table:NAME -->` and `<!-- /table -->` (in an experiment's own README without the name) stand rows of
`experiments/NAME/table.md`, as `hoard report experiments/NAME` writes it: maybe without some rows and columns, maybe
with columns of its own, in any order. Rows are found by dataset, method and variant; each cell whose column is the
table's gets its value, and an empty one stays empty. Between `<!-- paired A B ... -->` and
`<!-- pooled PATTERN ... -->` stands what `tools/paired.py` and `tools/pooled.py` print. Numbers in prose are not
touched. With `--check` nothing is written, and the exit status is 1 if a page is not up to date.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

from hoard.analysis import results

ROOT = Path(__file__).resolve().parents[1]
KEYS = ("dataset", "method", "variant")
BLOCK = re.compile(r"<!-- (table|paired|pooled)(?::([\w-]+))?((?: [^>]+)?) -->\n(.*?)<!-- /\1 -->", re.S)

Row = dict[str, str]


def pages() -> list[Path]:
    """All that may show a table."""
    return [
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "experiments").glob("*/README.md")),
    ]


def refreshed(page: Path) -> str:
    """The text of a page with its tables up to date. Raises ValueError naming the page and the row without a source."""

    def block(found: re.Match[str]) -> str:
        kind, name, arguments, body = found.groups()
        folder = ROOT / "experiments" / (name or page.parent.name)
        try:
            new = shown(folder, body) if kind == "table" else printed(kind, folder, arguments.split())
        except ValueError as error:
            raise ValueError(f"{page.relative_to(ROOT)}: {error}") from error
        return found.group().replace(body, new)

    return BLOCK.sub(block, page.read_text())


def shown(folder: Path, body: str) -> str:
    """The lines of a table with the cells that `folder`'s table has now."""
    head, rule, *lines = body.splitlines()
    columns = cells_of(head)
    tables = sorted(tables_of(folder / "table.md"), key=lambda rows: -len(rows[0].keys() & set(columns)))
    out = [head, rule]
    for line in lines:
        row = dict(zip(columns, cells_of(line), strict=True))
        source = next((found for rows in tables if (found := source_of(row, rows)) is not None), None)
        if source is None:
            raise ValueError(f"no row of {folder.name}/table.md is that of {line}")
        new = [like(cell, source.get(column, cell)) if cell else "" for column, cell in row.items()]
        out.append(f"| {' | '.join(new)} |")
    return "\n".join(out) + "\n"


def source_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The one among `rows` with the dataset, method and variant of `row`, as far as both say them.

    A variant in brackets, or none, stands for a row of a table without variants.
    """
    own = {key: plain(row[key]) for key in KEYS if key in row}
    if "variant" in own and (not own["variant"] or own["variant"].startswith("(")):
        del own["variant"]
    known = rows[0].keys()
    if not own.keys() <= known or ("variant" in known and "variant" not in own) or len(row.keys() & known) <= len(own):
        return None
    found = [one for one in rows if all(one[key] == value for key, value in own.items())]
    return found[0] if len(found) == 1 else None


@cache
def tables_of(path: Path) -> list[list[Row]]:
    """The tables of a file, each a list of rows by column."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", path.read_text(), re.M):
        head, _, *lines = block.splitlines()
        if lines:
            found.append([dict(zip(cells_of(head), map(plain, cells_of(line)))) for line in lines])
    return found


def printed(kind: str, folder: Path, arguments: Sequence[str]) -> str:
    """What `tools/paired.py` or `tools/pooled.py` prints of `folder`."""
    loaded = results.load(folder)
    if kind == "paired":
        paired = tool("paired")
        pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
        lines = [paired.HEAD, *paired.rows(loaded, pairs)]
    else:
        pooled = tool("pooled")
        lines = [pooled.head(pooled.measure_of(loaded)), *pooled.rows(loaded, arguments)]
    return "\n".join(lines) + "\n"


@cache
def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def plain(cell: str) -> str:
    return cell.strip("`")


def like(old: str, new: str) -> str:
    """`new` in code quotes where `old` is."""
    return f"`{new}`" if old.startswith("`") and not new.startswith("`") else new


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Bring the tables of the pages up to date with the experiments.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page is not up to date")
    options = parser.parse_args(arguments)
    changed = 0
    for page in pages():
        try:
            new = refreshed(page)
        except ValueError as error:
            parser.exit(2, f"error: {error}\n")
        if new != page.read_text():
            changed += 1
            print(page.relative_to(ROOT))
            if not options.check:
                page.write_text(new)
    return 1 if changed and options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
