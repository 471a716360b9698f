"""Show a checkpoint in the browser: its answers, where each word looks, milliseconds of each route, and a search.

MODEL is any model that can teach (`docs/teachers.md` has the list); ours answers questions, writes captions or finds
images too, as its head is for. Without MODEL the newest quickstart of this folder is shown, teacher beside student;
where there is none, the shortest is trained first, which takes a minute and learns nothing.

--images takes a folder, a Parquet file or a dataset of images to choose from and to search; generated scenes stand in
for them. They are encoded at the start, or --store names what `dual-distill encode` made of the very same images. The
page is served to this machine alone, and no image leaves it; Ctrl-C ends it. It needs gradio: pip install
'dual-distill[demo]'.

Examples:
  dual-distill demo
  dual-distill demo runs/student --teacher runs/teacher --images photos/
  dual-distill demo runs/retrieval --images photos/ --store photos.store
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from dual_distill.demo import DemoImages, Demonstration, generated_scenes, gradio, launch
from dual_distill.quickstart import quickstart

from .options import add_options, option

_SMOKE = "quickstart-smoke-seed0"
_LEARNT_NOTHING = (
    "These models were trained for a minute and have learnt nothing yet: `make quickstart` trains some for five, and "
    "the next `dual-distill demo` shows those."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add models, images and address."""
    help_text = "checkpoint folder or Hub repository (default: the newest quickstart here)"
    parser.add_argument("model", metavar="MODEL", nargs="?", help=help_text)
    option(parser, "--teacher", "MODEL", "second model, shown beside it")
    option(parser, "--images", "PATH", "folder, Parquet file or dataset of images (default: generated scenes)")
    option(parser, "--store", "STORE", "feature store of these images (default: they are encoded at the start)")
    option(parser, "--port", "N", "of the page (default: the first free one from 7860 on)")
    host = "address to listen at; 0.0.0.0 serves every machine that reaches this one (default: this machine alone)"
    option(parser, "--host", "NAME", host)
    add_options(parser, "--revision", "--device")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Load what is shown, serve the page, and wait for its end."""
    gradio()  # said before a minute of training
    note = ""
    if options.model is None:
        folder = newest_quickstart(Path())
        if folder is None:
            folder = Path(_SMOKE)
            quickstart("smoke", 0, "random", folder)
        options.model, options.teacher = str(folder / "distilled"), options.teacher or str(folder / "teacher")
        note = _LEARNT_NOTHING if "smoke" in folder.name else ""

    images = generated_scenes() if options.images is None else DemoImages(str(options.images))
    shown = Demonstration(options.model, options.teacher, images, options.store, options.revision, options.device)
    page = launch(shown, options.host, options.port, note)
    print(f"open {page.local_url} in a browser; Ctrl-C ends it", file=sys.stderr, flush=True)
    page.block_thread()
    return {"model": options.model, "teacher": options.teacher, "url": page.local_url}


def newest_quickstart(folder: Path) -> Path | None:
    """The newest finished quickstart in a folder, one that learnt something before any that did not."""
    found = [file.parent for file in folder.glob("quickstart-*/report.json")]
    return max(found, key=lambda path: ("smoke" not in path.name, path.stat().st_mtime), default=None)


def table(result: dict[str, Any]) -> str:
    """Say what was shown."""
    return f"shown at {result['url']}: {result['model']}"
