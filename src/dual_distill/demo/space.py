"""The folder of a Space that shows a checkpoint: what it runs is the very package that wrote it."""

import re
import shutil
import tempfile
from importlib.metadata import distribution, version
from pathlib import Path

_APP = '''"""Shows a checkpoint in the browser; DEMO of the environment holds other words for `dual-distill demo`."""

import os
import sys

from dual_distill.cli import main

sys.exit(main(["demo", *os.environ.get("DEMO", "{words}").split()]))
'''
_README = """---
title: {title}
emoji: 🔦
colorFrom: indigo
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
app_file: app.py
python_version: "3.12"
license: apache-2.0
{models}---

Ask an image, and see where the words look: what {shown} answers, where each word of the question looks, and how many
milliseconds each route takes. On one's own machine: `dual-distill demo{words}`.
"""
_GRADIO = "6.31.0"  # what the browser tests ran on
# What a record of somebody else's says stands in code here.
_NAME = re.compile(r"(\w[\w.-]*(?:/[\w.-]+)?)(?:@([\w./+@-]+))?")


def write_space(
    folder: str | Path, model: str | None = None, teacher: str | None = None, *, with_package: bool = True
) -> list[str]:
    """Write a Space's `app.py`, `requirements.txt` and README, and this package beside them.

    Args:
        folder: made where it is not there; files of other names stay.
        model: checkpoint on the Hub, `owner/name` or `owner/name@revision`; None: the quickstart's, trained at the
            first start.
        teacher: a second one beside it.
        with_package: copy the package as it is installed here; without it the Space asks the index for its version.

    Returns:
        Names of what was written.

    Raises:
        FileExistsError: the folder holds another `dual_distill`, or the one that runs, or lies in it.
        ValueError: a model's name is none on the Hub.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_space(folder, "me/student", with_package=False)
        ['README.md', 'app.py', 'requirements.txt']
    """
    target, running = Path(folder), Path(__file__).resolve().parents[1]
    package = target / "dual_distill"
    if running in (package.resolve(), *package.resolve().parents):
        raise FileExistsError(f"{str(package)!r} is the package that runs here, or inside it; choose another folder.")
    if package.exists() and not (package / "demo").is_dir():
        raise FileExistsError(f"{str(package)!r} is not a copy of this package; choose another folder.")

    names = [name for name in (model, teacher) if name]
    found = {name: _NAME.fullmatch(name) for name in names}
    if unfit := [name for name, match in found.items() if match is None]:
        raise ValueError(f"{unfit[0]!r} is no name on the Hub; give owner/name, or owner/name@revision.")
    parts = {name: match.groups() for name, match in found.items() if match}
    words = " ".join([*names[:1], *(["--teacher", teacher] if teacher else [])])
    listed = "models:\n" + "".join(f"- {repo}\n" for repo, _ in parts.values()) if names else ""
    repo, revision = parts[model] if model else ("dual_distill", None)
    address = f"https://huggingface.co/{repo}" + (f"/tree/{revision}" if revision else "")
    shown = f"[{model}]({address})" if model else "the quickstart's student beside its teacher"
    values = {"words": f" {words}" if words else "", "models": listed, "gradio": _GRADIO, "shown": shown}
    ours = f"dual-distill[demo]=={version('dual-distill')}"
    texts = {
        "README.md": _README.format(title=f"Where it looks, {repo.rpartition('/')[2]}", **values),
        "app.py": _APP.format(words=words),
        "requirements.txt": "\n".join(_requirements() if with_package else [ours]) + "\n",
    }
    target.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (target / name).write_text(text, encoding="utf-8")
    if not with_package:
        return sorted(texts)

    # Replaced whole, so that no module of an earlier version stays; its metadata say the version.
    with tempfile.TemporaryDirectory(dir=target, prefix=".copy-") as aside:
        shutil.copytree(running, Path(aside, "new"), ignore=shutil.ignore_patterns("__pycache__"))
        if package.exists():
            package.rename(Path(aside, "old"))
        Path(aside, "new").rename(package)
    metadata = target / f"dual_distill-{version('dual-distill')}.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(distribution("dual-distill").read_text("METADATA") or "", encoding="utf-8")
    return [*sorted(texts), package.name, metadata.name]


def _requirements() -> list[str]:
    """What the package needs to run, without its extras; the Space brings gradio."""
    listed = distribution("dual-distill").requires or []
    return [one.partition(";")[0].strip() for one in listed if "extra ==" not in one]
