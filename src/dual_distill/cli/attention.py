"""Draw where each word of a text looks in an image: the text-to-image attention of a model, a picture a word.

MODEL is any model that can teach: ours, a ViLT, BLIP, BLIP-2, Qwen-VL, SmolVLM, LLaVA, Gemma 3 and others, as it stands
on the Hub (`docs/teachers.md` has the list). Nothing is trained.

With --against a second model is drawn below it, over the same cells and on the same scale: a teacher and its student,
or a model before and after. Beside the picture stands its JSON, with the numbers.

Examples:
  dual-distill attention dandelin/vilt-b32-finetuned-vqa --image photo.jpg "two dogs on a sofa" --out map.png
  dual-distill attention HuggingFaceTB/SmolVLM-256M-Instruct --image photo.jpg "two dogs on a sofa" --layers 12 16
  dual-distill attention runs/teacher --image photo.jpg "what is on the sofa?" --against runs/student
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dual_distill.inference import attention_maps, draw_attention_picture, fetch_image, load_image
from dual_distill.teachers import load_teacher

from .options import add_options, option

_SMALLEST, _LARGEST = 144, 480


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add model, text, image, and how they are drawn."""
    option(parser, "model", "MODEL", "checkpoint folder or Hub repository of any model that can teach")
    parser.add_argument("text", help="what is said or asked about the image")
    option(parser, "--image", "PATH_OR_URL", "image to look at", required=True)
    option(parser, "--out", "PATH", "picture to write; its numbers go beside it as JSON (default: %(default)s)")
    option(parser, "--against", "MODEL", "second model, drawn over the same cells and on the same scale")
    layers = "averaged, counted among those in which text and image meet (default: -1, the last)"
    option(parser, "--layers", "N", layers, nargs="+")
    parser.add_argument("--smooth", action="store_true", help="a smooth map, in place of the cells that the model has")
    add_options(parser, "--revision", "--device")
    parser.set_defaults(out=Path("attention.png"), layers=[-1])


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Look with one model or two, draw both, and write picture and numbers."""
    if Image.registered_extensions().get(options.out.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--out is {str(options.out)!r}; give the name of a picture, such as map.png.")
    content, grid = fetch_image(options.image, repr(options.image)), None
    image = load_image(content, repr(options.image))
    maps: dict[str, np.ndarray] = {}
    # Two revisions of one repository are two models.
    for name, revision in ((options.model, options.revision), (options.against, None)):
        if name is not None:
            model, processor = load_teacher(name, revision)
            model.to(options.device)
            name = name if revision is None else f"{name}@{revision}"
            label = Path(name).name if Path(name).is_dir() and Path(name).name not in maps else name
            words, maps[label] = attention_maps(model, processor, content, options.text, options.layers, grid)
            grid = maps[label].shape[1:]

    size = min(max(round((image.width * image.height) ** 0.5), _SMALLEST), _LARGEST)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {"question": options.text, "tile_size": size, "smooth": options.smooth}
    draw_attention_picture(image, words, maps, **told).save(options.out)
    numbers = {"image": options.image, "text": options.text, "layers": options.layers, "words": words}
    numbers["maps"] = {name: np.round(of_model, 6).tolist() for name, of_model in maps.items()}
    file = options.out.with_suffix(".json")
    file.write_text(json.dumps(numbers, ensure_ascii=False), encoding="utf-8")

    looks = {name: [_peak(one) for one in of_model] for name, of_model in maps.items()}
    return {"picture": str(options.out), "numbers": str(file), "words": words, "looks": looks}


def _peak(looks: np.ndarray) -> dict[str, float]:
    """Centre of the cell that is looked at most, in the unit square, and its share."""
    row, column = np.unravel_index(looks.argmax(), looks.shape)
    centre = ((int(column) + 0.5) / looks.shape[1], (int(row) + 0.5) / looks.shape[0])
    return {"x": round(centre[0], 3), "y": round(centre[1], 3), "share": round(float(looks.max()), 4)}


def table(result: dict[str, Any]) -> str:
    """Lay out where each word looks most: a block a model, a line a word, and the files."""
    width, lines = max(map(len, result["words"])), []
    for name, peaks in result["looks"].items():
        lines.append(f"{name} looks most at")
        for word, peak in zip(result["words"], peaks, strict=True):
            lines.append(f"  {word:<{width}}  x {peak['x']:.2f}, y {peak['y']:.2f}  ({100 * peak['share']:.1f} %)")
    return "\n".join([*lines, f"picture: {result['picture']}", f"numbers: {result['numbers']}"])
