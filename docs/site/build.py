"""`make docs`: write the reference from the source, build the site, refuse any warning; --external asks other sites.

What is generated lies in docs/reference/: the public API from its docstrings, which are parsed and not imported; the
command line from its parsers; the fields of a recipe from their dataclasses; the recipes from their own first lines.
"""

import contextlib
import dataclasses
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

from dual_distill import _PUBLIC
from dual_distill.cli import COMMANDS, main
from dual_distill.runs import DataArguments, ModelArguments
from dual_distill.trainer import DistillationTrainingArguments

ROOT = Path(__file__).parents[2]
DOCS, SITE = ROOT / "docs", ROOT / "site"
REFERENCE = DOCS / "reference"
# Beside the names of `dual_distill`, the packages whose own faces users import from.
PACKAGES = [*_PUBLIC, "regions", "evaluation", "demo"]


def build(external: bool) -> int:
    """Write the reference, then the site; return the exit code."""
    shutil.rmtree(REFERENCE, ignore_errors=True)
    pages = {"cli": command_line(), "arguments": arguments(), "recipes": recipes()}
    package = griffe.load("dual_distill", search_paths=[ROOT / "src"], docstring_parser="google")
    pages |= {f"api_{name}": api(name, package[name]) for name in sorted(PACKAGES)}
    REFERENCE.mkdir()
    for name, lines in pages.items():
        (REFERENCE / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

    shutil.rmtree(SITE, ignore_errors=True)
    builders = {"html": SITE} | ({"linkcheck": SITE / "links"} if external else {})
    for builder, folder in builders.items():
        command = [sys.executable, "-m", "sphinx", "-b", builder, "-c", str(DOCS / "site"), "-W", "--keep-going", "-q"]
        if code := subprocess.run([*command, "-d", str(ROOT / ".doctrees"), str(DOCS), str(folder)]).returncode:
            return code
    print(f"{len(list(SITE.rglob('*.html')))} pages in {SITE}, no warning; open {SITE / 'index.html'}")
    return 0


def api(name: str, package: Any) -> Iterator[str]:
    """A page for the names that a package's face shows."""
    yield f"# dual_distill.{name}\n\n{package.docstring.value if package.docstring else ''}\n"
    for key, member in sorted(package.members.items()):
        with contextlib.suppress(griffe.AliasResolutionError):
            if member.is_alias and not member.final_target.is_module and not key.startswith("_"):
                yield from described(member.final_target, "##")


def described(thing: Any, level: str) -> Iterator[str]:
    """A class, function or constant: its signature, then the sections of its docstring, then its own methods."""
    if thing.is_attribute and not thing.docstring:
        return
    yield f"\n{level} `{thing.name}`\n"
    if thing.is_function or (thing.is_class and "__init__" in thing.members):
        function = thing if thing.is_function else thing["__init__"]
        shown = [parameter for parameter in function.parameters if parameter.name not in ("self", "cls")]
        inside = "".join(f"\n    {signature_of(parameter)}," for parameter in shown)
        returns = f" -> {function.returns}" if thing.is_function and function.returns else ""
        yield f"```python\n{thing.name}({inside}{chr(10) if inside else ''}){returns}\n```\n"
    if thing.docstring:
        for section in thing.docstring.parse("google", warnings=False):
            yield from section_of(section)
    if thing.is_class:
        for name, member in thing.members.items():
            if not name.startswith("_") and not member.is_alias and member.is_function and member.docstring:
                yield from described(member, level + "#")


def signature_of(parameter: Any) -> str:
    stars = {"variadic positional": "*", "variadic keyword": "**"}.get(parameter.kind.value, "")
    annotation = f": {parameter.annotation}" if parameter.annotation else ""
    default = f" = {parameter.default}" if parameter.default is not None and not stars else ""
    return f"{stars}{parameter.name}{annotation}{default}"


def section_of(section: Any) -> Iterator[str]:
    """One section of a docstring as Markdown."""
    kind, value = section.kind.value, section.value
    if kind == "text":
        yield f"{value}\n"
    elif kind == "examples":
        yield "**Example**\n"
        for what, text in value:
            yield f"```pycon\n{text}\n```\n" if what.value == "examples" else f"{text}\n"
    elif kind == "admonition":
        yield f"**{section.title or value.annotation}**\n\n{value.description}\n"
    else:
        yield f"**{kind.capitalize()}**\n"
        for item in value:
            name = getattr(item, "name", None) or getattr(item, "annotation", "")
            yield f"- `{name}`: {indented(item.description)}" if name else f"- {indented(item.description)}"
        yield ""


def indented(text: str) -> str:
    return "\n  ".join(text.splitlines())


def command_line() -> Iterator[str]:
    """What each command says of itself."""
    os.environ["COLUMNS"] = "110"
    yield "# Command line\n\nEvery page of `--help`, as the parsers print it.\n"
    for name, summary in COMMANDS.items():
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([name, "--help"])
        yield f"\n## dual-distill {name}\n\n{summary[0].upper()}{summary[1:]}."
        yield f"\n```text\n{printed.getvalue().rstrip()}\n```"


def arguments() -> Iterator[str]:
    """Every field of a recipe that is ours, with its default and its help, which names where a value comes from."""
    yield "# Fields of a recipe\n\nIn a recipe, on the command line (`--field value`) and in Python alike. Beside these"
    yield "stand all fields of transformers' `TrainingArguments` (`dual-distill train --help-all`)."
    inherited = {one.name for base in DistillationTrainingArguments.__mro__[1:-1] for one in own_fields(base)}
    for cls in (ModelArguments, DataArguments, DistillationTrainingArguments):
        yield f"\n## {cls.__name__}\n\n| field | default | what it is |\n|---|---|---|"
        for one in own_fields(cls):
            if one.name not in inherited or cls is not DistillationTrainingArguments:
                factory = one.default_factory
                default = one.default if factory is dataclasses.MISSING else factory()
                text = " ".join(str(one.metadata.get("help", "")).split()).replace("|", "\\|").replace("<", "&lt;")
                yield f"| `{one.name}` | `{default!r}` | {text} |"


def own_fields(cls: type) -> list[Any]:
    return list(dataclasses.fields(cls)) if dataclasses.is_dataclass(cls) else []


def recipes() -> Iterator[str]:
    """What each recipe says of itself."""
    yield "# Recipes\n\nA recipe opens with its commands and, where it was run, its duration and result.\n"
    for file in sorted((ROOT / "recipes").glob("*.yaml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        first = next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))
        told = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:first])
        yield f"\n## {file.name}\n\n```text\n{told}\n```\n\n```yaml\n{chr(10).join(lines[first:])}\n```"


if __name__ == "__main__":
    sys.exit(build("--external" in sys.argv[1:]))
