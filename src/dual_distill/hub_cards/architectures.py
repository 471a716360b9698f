"""What the name of a model's class says: its family and head, who loads it, and the modules that it needs.

The modules of `modeling/` are read as text, never imported: nothing here knows torch. With `--with-code` they go beside
the weights as they are, since `modeling/` is flat and its modules import one another as `from .sibling import Name`,
which is what transformers follows on the Hub. Whoever loads them has to say so (trust_remote_code); with the package
installed, its own classes are used instead.
"""

import ast
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

CONFIG = "config.json"
PROCESSOR_CONFIG = "processor_config.json"
SENTENCE_CONFIG = "config_sentence_transformers.json"
_MODELING = Path(__file__).parents[1] / "modeling"
_FAMILIES = ("FusionEncoder", "DualEncoder")

_VQA = "answers questions about images, from a fixed list of answers"
_MATCH = "scores how well a text and an image match"
_CLASSES = "classifies a sentence about images"
# Auto class of transformers and task of the Hub, None where there is none, and what such a model does: by the end of
# the class's name, or by all of it where one family alone has an Auto class.
_HEADS: dict[str, tuple[str | None, str | None, str]] = {
    "ForQuestionAnswering": ("AutoModelForVisualQuestionAnswering", "visual-question-answering", _VQA),
    "ForImagesAndTextClassification": ("AutoModelForSequenceClassification", None, _CLASSES),
    "ForImageTextRetrieval": (None, None, _MATCH),
    "DualEncoderForImageTextRetrieval": (
        *("AutoModelForZeroShotImageClassification", "zero-shot-image-classification"),
        _MATCH,
    ),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask", "fills in masked words of a text about an image"),
    "ForCaptioning": ("AutoModelForImageTextToText", "image-to-text", "writes captions of images"),
    "ForPreTraining": ("AutoModelForPreTraining", None, "was pre-trained on images and texts"),
    "Model": ("AutoModel", None, "gives vectors of texts and images, without a head for a task"),
}


class Architecture(NamedTuple):
    """What a model's class is.

    Attributes:
        name: of the class.
        family: "FusionEncoder" or "DualEncoder".
        head: the rest of the name.
        auto_class: Auto class that loads it; None: it is loaded by its class, from the package.
        pipeline_tag: the Hub's name of its task; None: the Hub has none.
        task: what it does, in words.
    """

    name: str
    family: str
    head: str
    auto_class: str | None
    pipeline_tag: str | None
    task: str


def read_architecture(name: str) -> Architecture:
    """Take the name of a model's class apart.

    Raises:
        ValueError: this version of the package has no such class.

    Example:
        >>> read_architecture("DualEncoderForQuestionAnswering")[1:4]
        ('DualEncoder', 'ForQuestionAnswering', 'AutoModelForVisualQuestionAnswering')
    """
    family = next((family for family in _FAMILIES if name.startswith(family)), None)
    if family is None or name not in _classes():
        lacks = "which this version of dual_distill does not have; update the package, or give one of its checkpoints"
        raise ValueError(f"{CONFIG} names the architecture {name!r}, {lacks}.")

    # A head that is new, and has no line in the table, is called by its name.
    head = name.removeprefix(family)
    known = _HEADS.get(name) or _HEADS.get(head) or (None, None, f"has the head {head}")
    return Architecture(name, family, head, *known)


def add_code(files: dict[str, bytes | Path], architecture: Architecture) -> dict[str, bytes | Path]:
    """Return the files of a checkpoint with the modules that it needs, and configurations that point to them.

    Raises:
        ValueError: there is no processor beside the model, or no Auto class loads it.
    """
    if PROCESSOR_CONFIG not in files:
        raise ValueError(f"there is no {PROCESSOR_CONFIG} beside the model, which code needs; save the processor too.")
    if architecture.auto_class is None:
        raise ValueError(f"no Auto class of transformers loads {architecture.name}; push without code.")

    family = architecture.family
    classes = {
        "AutoConfig": f"{family}Config",
        "AutoModel": f"{family}Model",
        architecture.auto_class: architecture.name,
    }
    result = dict(files)
    if SENTENCE_CONFIG in files:
        # sentence-transformers loads what it does not know as AutoModel, and needs no package then.
        classes["AutoModel"] = architecture.name
        sentence_config: Any = files[SENTENCE_CONFIG]
        result[SENTENCE_CONFIG] = as_json({**json.loads(sentence_config), "requirements": {}})
    pointers = {CONFIG: classes, PROCESSOR_CONFIG: {"AutoProcessor": "DualDistillProcessor"}}
    for file, loaded in pointers.items():
        content: Any = files[file]
        auto_map = {auto: f"{_classes()[name]}.{name}" for auto, name in loaded.items()}
        result[file] = as_json({**json.loads(content), "auto_map": auto_map})
        result |= _modules({_classes()[name] for name in loaded.values()})
    return result


def as_json(content: dict[str, Any]) -> bytes:
    """Return a JSON file as transformers lays it out."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _modules(wanted: set[str]) -> dict[str, bytes | Path]:
    """File -> source of these modules and of all that they import."""
    sources: dict[str, bytes | Path] = {}
    while wanted:
        file = _MODELING / f"{wanted.pop()}.py"
        sources[file.name] = source = file.read_bytes()
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        siblings = {node.module for node in nodes if node.level == 1 and node.module}
        wanted |= {name for name in siblings if f"{name}.py" not in sources}
    return sources


@functools.cache
def _classes() -> dict[str, str]:
    """Class -> module of `modeling/` that defines it."""
    trees = {file.stem: ast.parse(file.read_bytes()) for file in sorted(_MODELING.glob("*.py"))}
    return {node.name: module for module, tree in trees.items() for node in tree.body if isinstance(node, ast.ClassDef)}
