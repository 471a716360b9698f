"""Counts code lines, and the reasons beside them: `python tests/code_lines.py [FOLDER]` (default: the package).

A code line is one that is neither blank, nor a comment, nor part of a docstring. Inside functions, blank lines mark
stages and comments on lines of their own say why; both are counted per 100 code lines of functions, signatures among
them.
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parents[1] / "src" / "dual_distill"
_LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Lines(NamedTuple):
    """What a file's lines are: code in all, code of functions, blank lines and comments in their bodies."""

    code: int
    function_code: int
    body_blank: int
    body_comments: int


def count(text: str) -> Lines:
    """Count the lines of one file.

    Example:
        >>> count('def double(x):\\n    "Twice."\\n    # why\\n    y = 2 * x\\n\\n    return y\\n')
        Lines(code=3, function_code=3, body_blank=1, body_comments=1)
    """
    tree = ast.parse(text)
    code, comments = _code_and_comments(text)
    code -= {line for node in ast.walk(tree) for line in _docstring_lines(node)}

    functions: set[int] = set()
    bodies: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            statements = node.body[1:] if _docstring_lines(node) else node.body
            if statements:
                first = statements[0].lineno
                while first - 1 in comments - code:  # comments above the first statement belong to the body
                    first -= 1
                bodies |= set(range(first, (node.end_lineno or first) + 1))

    blank = {number for number, line in enumerate(text.splitlines(), 1) if not line.strip()}
    return Lines(len(code), len(code & functions), len(blank & bodies), len((comments - code) & bodies))


def _code_and_comments(text: str) -> tuple[set[int], set[int]]:
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        lines = range(token.start[0], token.end[0] + 1)
        if token.type == tokenize.COMMENT:
            comments |= set(lines)
        elif token.type not in _LAYOUT:
            code |= set(lines)
    return code, comments


def _docstring_lines(node: ast.AST) -> range:
    if not isinstance(node, _WITH_DOCSTRING) or ast.get_docstring(node, clean=False) is None:
        return range(0)
    return range(node.body[0].lineno, (node.body[0].end_lineno or node.body[0].lineno) + 1)


def main(folder: Path) -> None:
    """Print a line a package, and the sum."""
    packages: Counter[str] = Counter()
    total = Lines(0, 0, 0, 0)
    for path in sorted(folder.rglob("*.py")):
        lines = count(path.read_text(encoding="utf-8"))
        parts = path.relative_to(folder).parts
        packages[parts[0] if len(parts) > 1 else "(the package itself)"] += lines.code
        total = Lines(*(sum(pair) for pair in zip(total, lines, strict=True)))

    for name, code in packages.most_common():
        print(f"{code:>7,}  {name}")
    reasons = 100 * (total.body_blank + total.body_comments) / max(total.function_code, 1)
    print(f"{total.code:>7,}  code lines; {reasons:.1f} blank lines and comments per 100 code lines of functions")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE)
