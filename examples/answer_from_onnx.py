"""Questions about images, answered from an exported folder without torch and without dual_distill.

    dual-distill export runs/student --output-dir runs/student-onnx
    pip install numpy onnxruntime pillow tokenizers
    python examples/answer_from_onnx.py runs/student-onnx --image photo.jpg "what is it?" "how many are there?"

The image tower runs once; what it gives could be stored and asked tomorrow. Each question costs the other graphs: text
tower and head, or, of a model with interaction layers, one graph that reads the image's tokens.
"""

# ruff: noqa: T201 - printing is what a script does
import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer


class Answerer:
    """The graphs, the tokenizer and the image settings of one exported folder."""

    def __init__(self, folder: Path):
        self.about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        self.graphs = {
            name: onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
            for name, file in self.about["graphs"].items()
        }
        self.images = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))["image_processor"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(self.about["max_text_tokens"])
        self.tokenizer.enable_padding()  # with id 0; what stands there is masked

    def run(self, graph: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one graph on those of the arrays that it takes, and return what it gives by name."""
        session = self.graphs[graph]
        outputs = session.run(None, {one.name: arrays[one.name] for one in session.get_inputs()})
        return dict(zip([one.name for one in session.get_outputs()], outputs, strict=True))

    def encode_images(self, images: list[Image.Image]) -> dict[str, np.ndarray]:
        """Encode the N images that the model reads together: a vector `(1, N, C)`, or tokens and their mask."""
        expected = self.about["num_images"]
        if len(images) != expected:
            raise SystemExit(f"there are {len(images)} images, the model reads {expected} together; repeat --image.")
        arrays = [self.prepare(image) for image in images]
        height, width = (max(array.shape[side] for array in arrays) for side in (1, 2))
        values = np.zeros((1, len(arrays), 3, height, width), np.float32)
        mask = np.zeros((1, len(arrays), height, width), np.bool_)
        for place, array in enumerate(arrays):
            values[0, place, :, : array.shape[1], : array.shape[2]] = array
            mask[0, place, : array.shape[1], : array.shape[2]] = True
        return self.run("image_tower", {"pixel_values": values, "pixel_mask": mask})

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Resize, rescale and normalise an image as the processor does: `(3, H, W)` float32."""
        image = ImageOps.exif_transpose(image).convert("RGBA")
        # What is transparent stands on white, as the processor has it.
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        size = self.images["size"]
        if "shortest_edge" in size:  # ViLT's rule: keep the shape, cap the longer side, round down to whole patches
            shorter = size["shortest_edge"]
            scale = shorter / min(image.size)
            scale = min(scale, int(1333 / 800 * shorter) / max(image.size))
            step = self.images["size_divisor"]
            width, height = (int(side * scale + 0.5) // step * step for side in image.size)
        else:
            width, height = size["width"], size["height"]
        image = image.resize((width, height), Image.Resampling(self.images["resample"]))
        values = np.asarray(image, np.float32) * self.images["rescale_factor"]
        values = (values - np.array(self.images["image_mean"])) / np.array(self.images["image_std"])
        return values.astype(np.float32).transpose(2, 0, 1)

    def answer(self, questions: list[str], stored: dict[str, np.ndarray]) -> np.ndarray:
        """Ask all questions about images encoded before: probabilities `(questions, answers)`."""
        encoded = self.tokenizer.encode_batch(questions)
        arrays = {
            "input_ids": np.array([one.ids for one in encoded], np.int64),
            "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
        }
        arrays |= {name: np.repeat(array, len(questions), axis=0) for name, array in stored.items()}
        for graph in self.graphs:
            if graph != "image_tower":
                arrays |= self.run(graph, arrays)
        logits = arrays["logits"]
        if self.about["probabilities"] == "sigmoid":
            return 1 / (1 + np.exp(-logits))
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)


def main() -> None:
    """Answer and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `dual-distill export` wrote")
    parser.add_argument("questions", nargs="+", metavar="question")
    parser.add_argument("--image", action="append", required=True, dest="images", type=Path, metavar="FILE")
    parser.add_argument("--top-k", type=int, default=3, help="answers a question (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    options = parser.parse_intermixed_args()
    answerer = Answerer(options.folder)
    stored = answerer.encode_images([Image.open(file) for file in options.images])
    probabilities = answerer.answer(options.questions, stored)
    names = answerer.about["answers"]
    predictions = [
        {
            "question": question,
            "answers": [{"answer": names[i], "score": float(row[i])} for i in np.argsort(-row)[: options.top_k]],
        }
        for question, row in zip(options.questions, probabilities, strict=True)
    ]
    if options.json:
        print(json.dumps(predictions, ensure_ascii=False))
        return
    for prediction in predictions:
        print(prediction["question"])
        for answer in prediction["answers"]:
            print(f"  {answer['answer']}  {100 * answer['score']:.1f} %")


if __name__ == "__main__":
    main()
