"""From a clone to a model of one's own, by commands alone: clone, table, training on a CSV of 20 images, answer, card.

    python benchmarks/stopwatch.py [--python python3.11] [--keep FOLDER]

Everything happens in a new folder, from a clone of this repository: `make quickstart` makes its own environment from
the package index. The images (ten red and ten blue shapes) and their table are drawn before the clock of their step
starts. Seconds are of the wall; downloads are among the first of them.
"""

import argparse
import random
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

from _record import provenance, write
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
SEED = 0
STEPS = 60
# The quickstart's teacher in place of a ViLT from the Hub, so that nothing but the package index is asked.
STEP_COMMANDS = {
    "clone": f"git clone --quiet {ROOT} repository",
    "table": 'make quickstart PYTHON={python} ARGS="--preset smoke --output-dir runs/quick"',
    "train": (
        ".venv/bin/dual-distill train recipes/custom.yaml --role teacher --init-from runs/quick/teacher --data own.csv "
        f"--max-steps {STEPS} --per-device-train-batch-size 8 --gradient-accumulation-steps 1 --learning-rate 0.001 "
        "--augmentation none --dataloader-num-workers 0 --dataloader-persistent-workers false --eval-strategy no "
        "--save-strategy no --load-best-model-at-end false --output-dir runs/own"
    ),
    "answer": '.venv/bin/dual-distill predict runs/own --image own/red1.png "what color is it?" --top-k 1',
    "card": ".venv/bin/dual-distill card runs/own",
}


def write_own_data(folder: Path) -> None:
    """Draw 20 images and write own.csv beside them: a circle or square, red or blue, and a question about its color."""
    draw = random.Random(SEED)
    (folder / "own").mkdir()
    rows = ["image,question,answer"]
    for number in range(20):
        color = ("red", "blue")[number % 2]
        image = Image.new("RGB", (36, 36), "white")
        left, top = draw.randrange(16), draw.randrange(16)
        pen = ImageDraw.Draw(image)
        (pen.ellipse if number % 4 < 2 else pen.rectangle)((left, top, left + 16, top + 16), fill=color)
        name = f"own/{color}{number // 2}.png"
        image.save(folder / name)
        rows.append(f"{name},what color is it?,{color}")
    (folder / "own.csv").write_text("\n".join(rows) + "\n")


def main() -> None:
    """Run each command, print its seconds and record them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="python3", help="that makes the environment (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="new folder for all of it (default: one that goes)")
    options = parser.parse_args()
    source = provenance()

    with tempfile.TemporaryDirectory() as temporary:
        start = options.keep or Path(temporary)
        start.mkdir(parents=True, exist_ok=True)
        results = {}
        for step, command in STEP_COMMANDS.items():
            folder = start if step == "clone" else start / "repository"
            if step == "train":
                write_own_data(folder)
            command = command.format(python=options.python)
            began = time.perf_counter()
            done = subprocess.run(shlex.split(command), cwd=folder, capture_output=True, check=False, text=True)
            seconds = time.perf_counter() - began

            shown = command.replace(str(ROOT), "REPOSITORY")
            results[step] = {"command": shown, "seconds": round(seconds, 1), "exit_code": done.returncode}
            print(f"{step:<8} {seconds:7.1f} s  {shown}\n{(done.stdout or done.stderr).strip()[-1200:]}\n", flush=True)
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
        results["in all"] = {"seconds": round(sum(each["seconds"] for each in results.values()), 1)}
        print(f"in all   {results['in all']['seconds']:7.1f} s")
    write("stopwatch", results, source)


if __name__ == "__main__":
    main()
