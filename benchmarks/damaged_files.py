"""Flip one byte in every kind of file that the package writes, ten times each: its reader must refuse it by its name.

    python benchmarks/damaged_files.py [--flips 10]

The files are those that the scenarios of `kill_campaign.py` end with. Each is flipped at a place and by a value that
are drawn from a seed, given to whoever reads it, and put back. Counted are the flips that were refused in a sentence
that names the file ("named"), refused without the name ("unnamed"), and read as if nothing had happened ("read").
"""

import argparse
import logging
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _record import provenance, write
from kill_campaign import in_child, make_scenarios


def main() -> None:
    """Damage, read, print a line for each kind, and record the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=10, help="of each kind of file")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    source = provenance() | {"seed": 0}

    with tempfile.TemporaryDirectory() as work:
        kinds = make_kinds(Path(work).resolve())
        results = {name: damage(Path(file), read, options.flips) for name, (file, read) in kinds.items()}
    total = {key: sum(found[key] for found in results.values()) for key in ("named", "unnamed", "read")}
    print(f"{'all':<40} " + ", ".join(f"{key} {count}" for key, count in total.items()))
    if not options.no_record:
        write("damaged_files", {"kinds": results, "all": total}, source)
    if total["unnamed"] or total["read"]:
        raise SystemExit(1)


def damage(file: Path, read: Callable[[], Any], flips: int) -> dict[str, Any]:
    """Flip one file as often as asked, and count what became of it."""
    whole, draw = file.read_bytes(), random.Random(file.name)
    found: dict[str, Any] = {"named": 0, "unnamed": 0, "read": 0, "examples": []}
    read()
    for _ in range(flips):
        place, flip = draw.randrange(len(whole)), draw.randrange(1, 256)
        file.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        try:
            read()
            outcome, said = "read", f"byte {place} ^ {flip}"
        except ValueError as error:
            outcome, said = ("named" if file.name in str(error) else "unnamed"), str(error)
        except Exception as error:
            outcome, said = "unnamed", f"{type(error).__name__}: {error}"
        found[outcome] += 1
        if outcome != "named":
            found["examples"].append(said[:200])
    file.write_bytes(whole)
    counts = ", ".join(f"{key} {count}" for key, count in found.items() if key != "examples")
    print(f"{file.parent.name + '/' + file.name:<40} {counts}", *found["examples"][:2], sep="\n    ")
    return found


def make_kinds(work: Path) -> dict[str, tuple[Path, Callable[[], Any]]]:
    """Write a file of each kind; return each with its reader."""
    from dual_distill.hub_cards import read_run
    from dual_distill.inference import FeatureStore
    from dual_distill.quickstart import quickstart
    from dual_distill.regions import RegionStore
    from dual_distill.teachers import load_model, load_processor
    from dual_distill.trainer import newest_whole
    from dual_distill.trainer.teacher_cache import CacheTable

    scenarios = make_scenarios(work)
    folders = {name: work / "made" / name for name in scenarios if name != "push"}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        in_child(lambda name=name, folder=folder: scenarios[name].run(folder))

    def resume(checkpoint: Path) -> Callable[[], None]:
        """Look for the newest whole checkpoint; what is passed over is said in a warning."""

        def read() -> None:
            said: list[str] = []
            handler = logging.Handler()
            handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
            logger = logging.getLogger("dual_distill.trainer.sealed_trainer")
            logger.addHandler(handler)
            found = newest_whole(checkpoint.parent)
            logger.removeHandler(handler)
            if found != str(checkpoint):
                raise ValueError(" ".join(said))

        return read

    kinds: dict[str, tuple[Path, Callable[[], Any]]] = {}
    dide, vlm, stream = (folders[f"train_{name}"] / "run" for name in ("dide", "distillvlm", "stream"))
    for name in (
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        kinds[f"checkpoint: {name}"] = (dide / "checkpoint-2" / name, resume(dide / "checkpoint-2"))
        reader = load_model if name.startswith(("config", "model")) else load_processor
        kinds[f"model: {name}"] = (dide / name, lambda reader=reader: reader(dide))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "run.json", "sealed.json"):
        kinds[f"checkpoint: {name}"] = (dide / "checkpoint-2" / name, resume(dide / "checkpoint-2"))
    for run, name in ((vlm, "objective.safetensors"), (stream, "image_text_stream_0.json")):
        kinds[f"checkpoint: {name}"] = (run / "checkpoint-2" / name, resume(run / "checkpoint-2"))
    kinds["model: run.json"] = (dide / "run.json", lambda: read_run(dide))
    kinds["model: sealed.json"] = (dide / "sealed.json", lambda: load_model(dide))

    def table(store: Any) -> None:
        """Read all of a table."""
        store.open()
        for shard in store.planned_shards():
            store.rows(shard.number), store.vectors(shard.number)

    def cache(folder: Path) -> None:
        found = CacheTable(folder)
        found.read_manifest()
        for number in range(len(list(folder.glob("shard-*")))):
            found.rows(number), found.vectors(number)

    features, boxes = folders["encode"] / "store", folders["regions"] / "store"
    for what, folder, kind in (("feature store", features, FeatureStore), ("region store", boxes, RegionStore)):
        for file in (next(folder.glob("*.json")), folder / "plan-00000.arrow", folder / "shard-00001.arrow"):
            kinds[f"{what}: {file.name}"] = (file, lambda folder=folder, kind=kind: table(kind(folder).table))
    cached = folders["train_dide"] / "cache"
    for name in ("cache.json", "shard-00000.arrow"):
        kinds[f"teacher cache: {name}"] = (cached / name, lambda: cache(cached))
    started = folders["quickstart"] / "out"
    for name in ("settings.json", "teacher/stage.json"):
        kinds[f"quickstart: {name}"] = (started / name, lambda: quickstart("tiny", 0, "random", started))
    return kinds


if __name__ == "__main__":
    main()
