"""Kill everything that writes, at every operation on files, start it again, and compare with a run that nobody killed.

    python benchmarks/kill_campaign.py [--scenarios train_dide encode ...] [--trials 40]

Each trial is a fork of one process that has imported everything: it is ended at its n-th operation below its folder (an
open for writing, write, fsync, rename, link, unlink, mkdir ...; of a write half its bytes are left), then forked again
without a kill. What it ends with must equal, byte for byte, what an uninterrupted run ends with. `kill_shim.c` counts
the operations, those of Rust and C++ among them; a C compiler builds it. Of a push the bytes sent to the Hub count too:
they go to the test suite's own server, and the repository must hold one commit, whole, or none. Besides, the names of
all files must be those of an uninterrupted run: nothing half written or half removed stays.
"""

import argparse
import ctypes
import gc
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
RECORD = HERE / "results" / "kill_campaign.json"
MEMORY = Path("/dev/shm")
KILLED = 137


def load_shim() -> Any:
    """Build the shim, and start this script again under it; there, return it."""
    if "KILL_SHIM" not in os.environ:
        library = Path(tempfile.mkdtemp(), "kill_shim.so")
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, HERE / "kill_shim.c", "-ldl"], check=True)
        quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        shim = {"LD_PRELOAD": str(library), "KILL_SHIM": str(library)}
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **quiet, **shim})
    shim = ctypes.CDLL(os.environ["KILL_SHIM"])
    shim.kill_arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int)
    shim.kill_count.restype = ctypes.c_long
    return shim


class Scenario(NamedTuple):
    """What is killed: `run` writes below a folder, `ended` says what it ended with."""

    run: Callable[[Path], Any]
    ended: Callable[[Path], Any]
    prepare: Callable[[Path], Any] = lambda folder: None
    counts_sockets: bool = False


def main() -> None:
    """Run the scenarios, print a line for each, and record the counts."""
    shim = load_shim()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", help="default: all")
    parser.add_argument("--trials", type=int, metavar="N", help="of a scenario, evenly spread; default: each operation")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="operation to begin with")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()

    import torch
    from _record import provenance, write

    torch.set_num_threads(1)
    source = provenance()
    # In memory where there is such a folder: what is killed is a process, so that nothing depends on a disk.
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as work:
        scenarios = make_scenarios(Path(work).resolve())
        chosen = options.scenarios or list(scenarios)
        failed = False
        for name in chosen:
            found = campaign(shim, name, scenarios[name], Path(work).resolve(), options)
            failed |= bool(found["failures"])
            if not options.no_record:
                # Beside the scenarios that were recorded before, each with its own command.
                known = json.loads(RECORD.read_text())["results"] if RECORD.is_file() else {}
                own = {"command": source["command"], "commit": source["commit"]}
                write(RECORD.stem, known | {name: found | own}, source)
    if failed:
        raise SystemExit(1)


def campaign(shim: Any, name: str, scenario: Scenario, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Kill one scenario at each of its operations; return the counts."""
    folder, log = work / "trial", work / "log"
    for _ in range(2):  # the first fills what is filled once
        fresh(folder, scenario)
        code, operations = forked(shim, scenario, folder, log, at=-1)
        if code:
            raise SystemExit(f"{name} fails by itself:\n{log.read_text()}")
        import_all(log.read_text().splitlines()[-1].split())
    expected, failures, killed = scenario.ended(folder), [], 0
    assert expected, f"{name} ends with nothing to compare"

    tried = range(options.first, operations + 1, -(-operations // (options.trials or operations)))
    for at in tried:
        fresh(folder, scenario)
        code, _ = forked(shim, scenario, folder, log, at=at)
        killed += code == KILLED
        if code == KILLED:
            code, _ = forked(shim, scenario, folder, log, at=0)
        if code:
            failures.append(f"operation {at}: exit code {code}: {log.read_text()[-300:]}")
        elif (ended := scenario.ended(folder)) != expected:
            differ = sorted(set(map(str, ended.items())) ^ set(map(str, expected.items())))
            failures.append(f"operation {at}: another result: {differ}")
    equal = len(tried) - len(failures)
    print(f"{name:<20} {operations:>5} operations, {killed:>5} killed, {equal:>5} of {len(tried)} equal")
    print(*failures[:5], sep="\n", end="\n" if failures else "")
    sys.stdout.flush()
    return {"operations": operations, "killed": killed, "tried": len(tried), "equal": equal, "failures": failures[:20]}


def fresh(folder: Path, scenario: Scenario) -> None:
    """Empty a folder, and put into it what the scenario finds there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    scenario.prepare(folder)


def import_all(names: list[str]) -> None:
    """Import what a child imported, so that the next need not; their collectors leave alone what was made so far."""
    for name in names:
        if name not in sys.modules:
            with suppress(Exception):  # a module that is made by another one
                importlib.import_module(name)
    gc.collect()
    gc.freeze()


def forked(shim: Any, scenario: Scenario, folder: Path, log: Path, at: int) -> tuple[int, int]:
    """Run in a child, ended at its operation `at` (0: not counted, -1: counted); return its exit code and the count."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            if at:
                shim.kill_arm(f"{folder}/".encode(), at, scenario.counts_sockets)
            scenario.run(folder)
            os.write(writing, str(shim.kill_count()).encode())
            if at < 0:
                os.write(1, b"\n" + " ".join([*sys.modules]).encode())
            code = 0
        except BaseException:
            import traceback

            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(writing)
    count = os.read(reading, 20)
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(count or 0)


def digests(*patterns: str) -> Callable[[Path], dict[str, str]]:
    """What a folder ended with: the names of all files and folders, of these patterns the SHA-256 too."""

    def ended(folder: Path) -> dict[str, str]:
        files = [file for pattern in patterns for file in folder.glob(pattern) if file.is_file()]
        names = {str(file.relative_to(folder)): "" for file in folder.rglob("*")}
        return names | {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    return ended


def make_scenarios(work: Path) -> dict[str, Scenario]:
    """Prepare what the scenarios share: generated scenes, a teacher, a region store, image-text shards, a Hub."""
    from datasets import Image as ImageFeature

    from dual_distill import hub_cards, inference, quickstart, regions, runs, trainer
    from dual_distill.data import load_task
    from dual_distill.quickstart import run as quickstart_run
    from dual_distill.teachers import load_model

    data = load_task("scenes", num_scenes={"train": 12, "validation": 2, "test": 2})
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 12}
    sizes |= {"image_height": 36, "image_width": 36, "resize": "fixed", "max_text_length": 24}

    def train(folder: Path, model: dict[str, Any], read: dict[str, Any], splits: Any = data, **fields: Any) -> None:
        # Two checkpoints, the second of which takes the place of the first.
        usual: dict[str, Any] = {"max_steps": 2, "save_steps": 1, "save_total_limit": 1, "use_cpu": True}
        usual |= {"per_device_train_batch_size": 4, "disable_tqdm": True, "report_to": "none", "logging_steps": 1}
        arguments = trainer.DistillationTrainingArguments(str(folder / "run"), **{**usual, **fields})
        model_arguments = runs.ModelArguments(**{**sizes, "hidden_dropout_prob": 0.1, **model})
        read = {"task": "scenes", "max_train_rows": 16, **read}
        runs.train(runs.make_run(model_arguments, runs.DataArguments(**read), arguments, data=splits))

    # In children, so that this process has run nothing when it forks.
    teacher, region_teacher, store = (
        work / "teacher" / "run",
        work / "region_teacher" / "run",
        work / "regions" / "store",
    )
    images = work / "images"
    images.mkdir()
    rows = data["train"].cast_column("image", ImageFeature(decode=False))
    for number, row in enumerate(rows.select(range(0, 36, 3))):
        (images / f"{number:02}.png").write_bytes(row["image"]["bytes"])
    captions = make_shards(images, work / "shards")

    def detect(source: Any, folder: Path) -> None:
        regions.extract_regions(make_detector(), inference.open_images(source), folder, batch_size=2, shard_size=3)

    of_scenes = {str(row["scene_id"]): row["image"] for split in data.values() for row in split}
    in_child(lambda: train(teacher.parent, {"architecture": "fusion_encoder"}, {}, max_steps=1))
    in_child(lambda: detect(of_scenes, store))
    on_regions = {"regions": str(store), "num_tags": 0}
    in_child(lambda: train(region_teacher.parent, {"architecture": "fusion_encoder"}, on_regions, max_steps=1))

    def train_dide(folder: Path) -> None:
        taught = {"teacher": str(teacher), "init_from": str(teacher), "interaction_layers": 1}
        train(folder, taught, {}, cache_teacher="attention", teacher_cache_dir=str(folder / "cache"))

    def train_distillvlm(folder: Path) -> None:
        taught = {"architecture": "fusion_encoder", "teacher": str(region_teacher)}
        train(folder, taught, {**on_regions, "teacher_regions": str(store)}, method="distillvlm", queue_size=8)

    def train_stream(folder: Path) -> None:
        options = {"sources": [captions], "validation": [captions], "validation_rows": 4, "shuffle_buffer": 3}
        read = {"task": "image_text", "head": "pretraining", "data_options": options, "max_train_rows": None}
        train(folder, {}, read, splits=None)

    def encode(folder: Path) -> None:
        model, processor = load_model(teacher_of_store)
        inference.encode_images(model, processor, str(images), str(folder / "store"), batch_size=2, shard_size=4)

    in_child(lambda: train(work / "student", {"teacher": str(teacher)}, {}, max_steps=1, save_strategy="no"))
    teacher_of_store = work / "student" / "run"

    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    quickstart_run.PRESETS["tiny"] = quickstart_run.Preset(
        8, 2, 2, teacher_steps=2, student_steps=1, teacher_first_share=0.5, **tiny
    )
    measure = quickstart_run.measure_answering
    quickstart_run.measure_answering = lambda *given, **options: measure(*given, warmup=0, repeats=2)

    hub, repos = start_hub(work), iter(range(10**6))

    def push(folder: Path) -> None:
        hub_cards.push_folder(folder / "model", f"me/{(folder / 'name').read_text()}")

    def prepare_push(folder: Path) -> None:
        (folder / "name").write_text(f"model-{next(repos)}")
        shutil.copytree(teacher_of_store, folder / "model")

    def pushed(folder: Path) -> Any:
        repo = hub.repos[f"me/{(folder / 'name').read_text()}"]
        files = {name: hashlib.sha256(content).hexdigest() for name, content in repo.files().items()}
        own = {"README.md"}  # names the repository
        return {name: digest for name, digest in files.items() if name not in own} | {"commits": len(repo.commits)}

    # The rest of the files holds seconds and dates.
    fixed = ("*.safetensors", "tokenizer.json", "config.json", "processor_config.json")
    states = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "image_text_stream_0.json")
    trained = digests(*(f"run/{name}" for name in fixed), *(f"run/*/{name}" for name in (*fixed, *states)), "cache/*")
    stages = digests(*(f"out/*/{name}" for name in fixed), "out/*.png")
    return {
        "train_dide": Scenario(train_dide, trained),
        "train_distillvlm": Scenario(train_distillvlm, trained),
        "train_stream": Scenario(train_stream, trained),
        "encode": Scenario(encode, digests("store/*")),
        "regions": Scenario(lambda folder: detect(str(images), folder / "store"), digests("store/*")),
        "quickstart": Scenario(lambda folder: quickstart.quickstart("tiny", 0, "random", folder / "out"), stages),
        "push": Scenario(push, pushed, prepare_push, counts_sockets=True),
    }


def in_child(call: Callable[[], Any]) -> None:
    """Call in a child, and wait for it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            call()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit("what the scenarios share could not be made")


def make_shards(images: Path, folder: Path) -> dict[str, Any]:
    """Write images with captions as Parquet; return them as a source of a stream."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    files = sorted(images.iterdir())
    for part in range(2):
        own = files[part::2]
        captions = [f"scene {file.stem} shows {len(file.read_bytes())} bytes" for file in own]
        table = {"image": [file.read_bytes() for file in own], "caption": captions}
        pq.write_table(pa.table(table), folder / f"{part}.parquet")
    return {"path": str(folder / "*.parquet"), "kind": "parquet"}


def make_detector() -> Any:
    """Make a tiny detector, the same each time."""
    import torch
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessorPil

    from dual_distill.regions.detectors import Detector

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = YolosConfig(
        **sizes, image_size=[48, 64], patch_size=16, num_detection_tokens=6, use_mid_position_embeddings=False
    )
    processor = YolosImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 96})
    return Detector(YolosForObjectDetection(config), processor, "yolos")


def start_hub(work: Path) -> Any:
    """Start the test suite's Hub, and tell the client of this process to use it."""
    import huggingface_hub
    from huggingface_hub import constants

    spec: Any = importlib.util.spec_from_file_location("hub", HERE.parent / "tests" / "hub" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["hub"] = module
    spec.loader.exec_module(module)
    hub = module.Hub()
    hub.handle_error = lambda *given: None  # connections of children that are killed
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
        "HF_TOKEN_PATH": str(work / "no-token"),
    }.items():
        setattr(constants, name, value)
    huggingface_hub.hf_api.api.endpoint = hub.url
    os.environ["HF_TOKEN"] = module.TOKEN
    return hub


if __name__ == "__main__":
    main()
