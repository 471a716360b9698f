"""docs/guarantees.md: each promise names the tests that hold it, and they are there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_every_promise_names_tests_that_exist() -> None:
    promises = PAGE.partition("## transformers' own")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(rows) > 20
    assert [row for row in rows if not NAMED.search(row.rsplit(" | ", 1)[-1])] == []
    missing = []
    for file, name in NAMED.findall(PAGE):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        if name not in {part.name for part in ast.walk(tree) if isinstance(part, ast.FunctionDef)}:
            missing.append(f"{file}::{name}")
    assert missing == []
    assert PAGE.count("::test_") == len(NAMED.findall(PAGE))  # none is misspelt
