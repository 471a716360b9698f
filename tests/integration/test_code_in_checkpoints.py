"""Code that a checkpoint brings (`auto_map`) is run by no command, whatever is typed where transformers would ask."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from transformers import BertTokenizer, ViltImageProcessorPil

from dual_distill import DualDistillProcessor, DualEncoderConfig, DualEncoderForQuestionAnswering

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "it", "red"]
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import PreTrainedConfig, PreTrainedModel
class Config(PreTrainedConfig):
    model_type = "elsewhere"
class Model(PreTrainedModel):
    config_class = Config
class Processor: pass
"""
AUTO_MODELS = ("AutoModel", "AutoModelForVisualQuestionAnswering", "AutoModelForObjectDetection")
MODEL_MAP = {"AutoConfig": "code.Config", **dict.fromkeys(AUTO_MODELS, "code.Model")}
PARTS = ("AutoProcessor", "AutoImageProcessor", "AutoTokenizer")
PROCESSOR_MAP = dict.fromkeys(PARTS, "code.Processor") | {"AutoTokenizer": ["code.Processor", None]}
# What brings the code -> changes of files; a value of None is left out.
BROUGHT_BY = {
    "a model of an unknown type": {"config.json": {"model_type": "elsewhere", "auto_map": MODEL_MAP}},
    "a model of ours": {"config.json": {"auto_map": MODEL_MAP}},
    "its tokenizer": {"tokenizer_config.json": {"tokenizer_class": "Elsewhere", "auto_map": PROCESSOR_MAP}},
    "its processor": {"processor_config.json": {"processor_class": "Elsewhere", "auto_map": PROCESSOR_MAP}},
    "its image processor": {
        "processor_config.json": {"image_processor": {"image_processor_type": "X", "auto_map": PROCESSOR_MAP}}
    },
}
TABLE = ("--task", "custom", "--data", "{root}/table")
TRAIN = ("train", "{root}/empty.yaml", *TABLE, "--output_dir", "{out}", "--max_steps", "1", "--use_cpu", "true")
COMMANDS = {
    "predict": ("predict", "{model}", "--image", "{root}/images/a.png", "is it red"),
    "encode": ("encode", "{model}", "--images", "{root}/images", "--output-dir", "{out}"),
    "ask": ("ask", "{model}", "{root}/store", "is it red"),
    "regions": ("regions", "{model}", "--images", "{root}/images", "--output-dir", "{out}"),
    "train, init_from": (*TRAIN, "--init_from", "{model}"),
    "train, teacher": (*TRAIN, "--init_from", "{root}/good", "--teacher", "{model}"),
    "train, plan": (*TRAIN, "--init_from", "{model}", "--dry-run"),
    "evaluate": ("evaluate", "{model}", *TABLE, "--split", "train", "--no-baselines"),
    "convert": ("convert", "{model}", "--output-dir", "{out}"),
    "benchmark": ("benchmark", "{model}", "--repeats", "2", "--device", "cpu"),
    "export": ("export", "{model}", "--output-dir", "{out}"),
    "push": ("push", "{model}", "me/student", "--dry-run"),
    "card": ("card", "{model}"),
}
# They need no model: what is published is read as files, and `auto_map` stays behind.
READ_NO_MODEL = ("push", "card")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, dual_distill: Callable) -> Path:
    """A checkpoint without code, a store made with it, one image, and a table of eight rows."""
    root = tmp_path_factory.mktemp("code")
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 12, **TOWER}
    labels = {"id2label": {0: "yes", 1: "no"}, "label2id": {"yes": 0, "no": 1}}
    config = DualEncoderConfig(text_config=text, vision_config={"image_size": 32, "patch_size": 16, **TOWER}, **labels)
    DualEncoderForQuestionAnswering(config).save_pretrained(root / "good")
    image_processor = ViltImageProcessorPil(size={"shortest_edge": 32}, size_divisor=16)
    tokenizer = BertTokenizer({word: index for index, word in enumerate(WORDS)})
    DualDistillProcessor(image_processor, tokenizer).save_pretrained(root / "good")
    for folder in ("images", "table"):
        (root / folder).mkdir()
        Image.new("RGB", (40, 32), "red").save(root / folder / "a.png")
    rows = "image,question,answer\n" + "a.png,is it red,yes\na.png,is it,no\n" * 4
    for split in ("train", "validation"):
        (root / "table" / f"{split}.csv").write_text(rows)
    (root / "empty.yaml").write_text("{}")
    words = COMMANDS["encode"]
    made = dual_distill(*(word.format(model=root / "good", root=root, out=root / "store") for word in words))
    assert made.code == 0, made.err
    return root


@pytest.fixture
def brought_by(root: Path, tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """The checkpoint with code in one of its files, and the file whose existence says that it was run."""

    def brought_by(what: str) -> tuple[Path, Path]:
        folder, mark = tmp_path / "model", tmp_path / "it ran"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(root / "good", folder)
        (folder / "code.py").write_text(CODE.format(mark=str(mark)))
        for name, fields in BROUGHT_BY[what].items():
            content = json.loads((folder / name).read_text())
            for field, value in fields.items():
                content[field] = {**content[field], **value} if isinstance(content.get(field), dict) else value
            (folder / name).write_text(json.dumps(content))
        return folder, mark

    return brought_by


@pytest.fixture
def run(root, brought_by, dual_distill, monkeypatch, tmp_path):
    """Runs a command on a checkpoint with code, `y` typed at each question; the code must not run, nobody may ask."""

    def run(command: str, what: str):
        folder, mark = brought_by(what)
        typed = "y\n" * 20
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        words = (word.format(model=folder, root=root, out=tmp_path / what) for word in COMMANDS[command])
        printed = dual_distill(*words)
        assert not mark.exists(), (what, printed)
        assert sys.stdin.read() == typed
        return printed

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_a_model_of_an_unknown_type(command, run):
    printed = run(command, "a model of an unknown type")
    assert printed.code == (0 if command in READ_NO_MODEL else 2), printed.err
    if command not in (*READ_NO_MODEL, "regions"):
        assert "code of its own, which is never run here; remove auto_map" in printed.err


@pytest.mark.slow
@pytest.mark.parametrize("what", [what for what in BROUGHT_BY if what != "a model of an unknown type"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_a_known_model_brings(command, what, run):
    run(command, what)
