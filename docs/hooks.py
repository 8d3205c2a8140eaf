"""What MkDocs does beyond Markdown: tables of options, equations as MathML, pages from outside of `docs/`.

- `<!-- options -->` on the page of an algorithm becomes the table of its options, read from the algorithm file. The
  file is not imported, so that the site needs neither torch nor a simulator.
- Equations between dollar signs become MathML, which browsers draw without any script or font from elsewhere.
- The pages and figures in `experiments/`, and a few other pages of the repository, are part of the site. Links to other
  files of the repository lead to `repo_url`, or stay plain text where `mkdocs.yml` names none.
"""

from __future__ import annotations

import ast
import html
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("envs/README.md", "CONTRIBUTING.md", "CHANGELOG.md")
OPTIONS = "<!-- options -->"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
EQUATION = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.S)


# --- options ---


def options_of(source: str) -> list[tuple[str, str, str, str]]:
    """(group, name, default, meaning) of every field of an algorithm file's `Config`, in order."""
    lines = source.splitlines()
    (config,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Config")
    fields = {node.lineno: node for node in config.body if isinstance(node, ast.AnnAssign)}
    out, group = [], ""
    assert config.end_lineno is not None
    for number in range(config.lineno, config.end_lineno + 1):
        if heading := re.fullmatch(r"\s*# --- (.*) ---", lines[number - 1]):
            group = heading[1]
        if node := fields.get(number):
            assert isinstance(node.target, ast.Name)
            assert node.value is not None
            assert node.end_lineno is not None
            meaning = lines[node.end_lineno - 1].partition("  # ")[2]
            default = ast.get_source_segment(source, node.value) or ""
            choices = re.fullmatch(r"Literal\[(.*)\]", ast.unparse(node.annotation))
            if choices:
                meaning = f"{choices[1].replace(chr(39), '`')}: {meaning}"
            out.append((group, node.target.id, default.strip("\"'"), meaning))
    return out


def escape(text: str) -> str:
    """Plain text as a cell of a Markdown table."""
    return re.sub(r"([|*])", r"\\\1", html.escape(text, quote=False))


def options_table(algo_file: Path) -> str:
    """A Markdown table of the options of an algorithm file."""
    rows, last = ["| option | default | what it is |", "|---|---|---|"], None
    for group, name, default, meaning in options_of(algo_file.read_text()):
        if group != last:
            rows.append(f"| **{group}** | | |")
            last = group
        rows.append(f"| `{name}` | `{default}` | {escape(meaning)} |")
    return "\n".join(rows)


# --- equations ---


def mathml(latex: str, display: str) -> str:
    """MathML of a LaTeX formula. Raises ValueError for a command that the converter does not know."""
    from latex2mathml.converter import convert

    text = convert(latex, display=display)
    if "\\" in text or "<mi>&</mi>" in text:
        raise ValueError(f"this equation cannot be drawn: {latex.strip()}")
    return text


def draw_equations(page: str) -> str:
    """Replace what the Markdown extension `arithmatex` has marked."""
    return EQUATION.sub(lambda m: mathml(html.unescape(m[2]), "block" if m[1] == "div" else "inline"), page)


# --- links ---


def relink(text: str, page: Path, page_uri: str, uris: dict[Path, str], repo_url: str | None) -> str:
    """Rewrite the links of a page that lies at `page` in the repository and at `page_uri` on the site.

    `uris` says where the files of the site come from. Links that lead nowhere stay, for MkDocs to complain of.
    """

    def replace(match: re.Match[str]) -> str:
        picture, label, target, anchor = match[1], match[2], match[3], match[4] or ""
        if re.match(r"[a-z]+:|/", target):
            return match[0]
        file = (page.parent / target).resolve()
        if file in uris:
            return f"{picture}[{label}]({os.path.relpath(uris[file], os.path.dirname(page_uri) or '.')}{anchor})"
        if not file.exists() or not file.is_relative_to(ROOT):
            return match[0]
        if repo_url:
            return f"{picture}[{label}]({repo_url.rstrip('/')}/blob/HEAD/{file.relative_to(ROOT).as_posix()}{anchor})"
        return label

    return LINK.sub(replace, text)


# --- what MkDocs calls ---


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    experiments = ROOT / "experiments"
    outside = [*experiments.rglob("*.md"), *experiments.rglob("*.png"), *(ROOT / page for page in OUTSIDE)]
    for path in sorted(outside):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    uris = {Path(file.abs_src_path).resolve(): file.src_uri for file in files if file.abs_src_path}
    path = Path(page.file.abs_src_path).resolve()
    if OPTIONS in markdown:
        markdown = markdown.replace(OPTIONS, options_table(ROOT / "algos" / f"{path.stem}.py"))
    return relink(markdown, path, page.file.src_uri, uris, config.repo_url)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    return draw_equations(html)
