"""What smaller weights cost: accuracy, size and speed of an exported student, beside torch.

    python benchmarks/precisions.py runs/quickstart/distilled [--scenes 300 --rounds 5]

A student of the quickstart, on scenes that it was not trained on: torch in float32 with prepacked layers, ONNX in
float32, float16 and int8 in onnxruntime, and the float32 and int8 graphs in OpenVINO. Each answers every row in batches
of 16, images and questions, nothing stored; then all take turns on the first rows. One thread each.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from _record import provenance, write

from dual_distill.data import DistillationCollator, get_task, load_task
from dual_distill.inference import export_onnx, prepack_linear_layers
from dual_distill.inference.export import graphs_of
from dual_distill.teachers import load_model

BATCH, TIMED = 16, 20


def main() -> None:
    """Export, measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    source = provenance() | {"model": f"quickstart, {Path(options.model).name}"}
    torch.set_num_threads(1)

    model, processor = load_model(options.model)
    task = get_task("scenes")
    rows = load_task("scenes", num_scenes={"train": 1, "validation": 1, "test": options.scenes}, seed=1000)["test"]
    collator = DistillationCollator(processor, task, task.label_names or ())
    batches = [collator(list(rows.select(range(i, min(i + BATCH, len(rows)))))) for i in range(0, len(rows), BATCH)]
    labels = np.concatenate([batch.pop("labels").numpy() for batch in batches])
    arrays = [{name: tensor.numpy() for name, tensor in batch.items()} for batch in batches]

    with tempfile.TemporaryDirectory() as root:
        folders = {name: Path(root, name) for name in ("float32", "float16", "int8")}
        sizes = {name: sum(export_onnx(model, processor, out, name).files.values()) for name, out in folders.items()}
        weights = sum(parameter.nbytes for parameter in model.parameters())
        prepack_linear_layers(model)
        variants: dict[str, tuple[int, Any]] = {"torch float32": (weights, run_torch(model))}
        names = [*graphs_of(model)]
        variants |= {f"ONNX {name}": (sizes[name], run_onnx(out, names)) for name, out in folders.items()}
        for name in ("float32", "int8"):
            variants[f"OpenVINO {name}"] = (sizes[name], run_openvino(folders[name], names))

        results: dict[str, Any] = {"rows": len(labels)}
        first = None
        for name, (size, answer) in variants.items():
            found = np.concatenate([answer(batch).argmax(-1) for batch in arrays])
            first = found if first is None else first
            results[name] = {
                "accuracy": round(100 * float((found == labels).mean()), 2),
                "answers_changed": int((found != first).sum()),
                "megabytes": round(size / 1e6, 2),
            }
        times: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(options.rounds):
            for name, (_, answer) in variants.items():
                start = time.perf_counter()
                for batch in arrays[:TIMED]:
                    answer(batch)
                times[name].append(1000 * (time.perf_counter() - start) / (BATCH * len(arrays[:TIMED])))
    for name, each in times.items():
        ratios = [one / plain for one, plain in zip(each, times["torch float32"], strict=True)]
        results[name] |= {"ms_a_row": round(median(each), 3), "by_torch": [round(x, 3) for x in quantiles(ratios, n=4)]}
    for name, result in results.items():
        print(name, result)
    source["command"] = "python benchmarks/precisions.py runs/quickstart/distilled"
    write("precisions", results, source)


def run_torch(model: Any) -> Any:
    """Logits of a batch in torch."""

    def answer(batch: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits.numpy()

    return answer


def run_onnx(folder: Path, names: list[str]) -> Any:
    """Logits of a batch by the graphs in onnxruntime."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    on_cpu = {"sess_options": settings, "providers": ["CPUExecutionProvider"]}
    sessions = [onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), **on_cpu) for name in names]

    def answer(batch: dict[str, np.ndarray]) -> np.ndarray:
        given = dict(batch)
        for session in sessions:
            found = session.run(None, {put.name: given[put.name] for put in session.get_inputs()})
            given |= zip([put.name for put in session.get_outputs()], found, strict=True)
        return given["logits"]

    return answer


def run_openvino(folder: Path, names: list[str]) -> Any:
    """Logits of a batch by the graphs in OpenVINO, computed in float32."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    graphs = [openvino.Core().compile_model(str(folder / f"{name}.onnx"), "CPU", settings) for name in names]

    def answer(batch: dict[str, np.ndarray]) -> np.ndarray:
        given = dict(batch)
        for graph in graphs:
            found = graph({put.any_name: given[put.any_name] for put in graph.inputs})
            given |= {put.any_name: found[put] for put in graph.outputs}
        return given["logits"]

    return answer


if __name__ == "__main__":
    main()
