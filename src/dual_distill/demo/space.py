"""The folder of a Space that shows a checkpoint: what it runs is the very package that wrote it."""

import shutil
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


def write_space(
    folder: str | Path, model: str | None = None, teacher: str | None = None, *, with_package: bool = True
) -> list[str]:
    """Write a Space's `app.py`, `requirements.txt` and README, and this package beside them.

    Args:
        folder: made where it is not there; files of other names stay.
        model: checkpoint on the Hub, `owner/name`; None: the quickstart's, trained at the first start.
        teacher: a second one beside it.
        with_package: copy the package as it is installed here; without it the Space asks the index for its version.

    Returns:
        Names of what was written.

    Raises:
        FileExistsError: the folder holds another `dual_distill`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_space(folder, "me/student", with_package=False)
        ['README.md', 'app.py', 'requirements.txt']
    """
    target, ours = Path(folder), f"dual-distill[demo]=={version('dual-distill')}"
    package = target / "dual_distill"
    if package.exists() and not (package / "demo").is_dir():
        raise FileExistsError(f"{str(package)!r} is not a copy of this package; choose another folder.")

    names = [name for name in (model, teacher) if name]
    words = " ".join([*names[:1], *(["--teacher", teacher] if teacher else [])])
    listed = "models:\n" + "".join(f"- {name}\n" for name in names) if names else ""
    shown = f"[{model}](https://huggingface.co/{model})" if model else "the quickstart's student beside its teacher"
    values = {"words": f" {words}" if words else "", "models": listed, "gradio": _GRADIO, "shown": shown}
    title = f"Where it looks, {(model or 'dual_distill').rpartition('/')[2]}"
    texts = {
        "README.md": _README.format(title=title, **values),
        "app.py": _APP.format(words=words),
        "requirements.txt": "\n".join(_requirements() if with_package else [ours]) + "\n",
    }
    target.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (target / name).write_text(text, encoding="utf-8")
    if not with_package:
        return sorted(texts)

    # Replaced whole, so that no module of an earlier version stays; its metadata say the version.
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(Path(__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    metadata = target / f"dual_distill-{version('dual-distill')}.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(distribution("dual-distill").read_text("METADATA") or "", encoding="utf-8")
    return [*sorted(texts), package.name, metadata.name]


def _requirements() -> list[str]:
    """What the package needs to run, without its extras; the Space brings gradio."""
    listed = distribution("dual-distill").requires or []
    return [one.partition(";")[0].strip() for one in listed if "extra ==" not in one]
