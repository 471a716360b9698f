"""`--with-code`: the modules of `modeling/` beside the weights, so that a checkpoint loads where the package is not
installed.

The files are read as text, never imported: this room knows no torch. They go as they are, since `modeling/` is flat and
its modules import one another as `from .sibling import Name`, which is what transformers follows on the Hub. Whoever
loads them has to say so (trust_remote_code); with the package installed, its own classes are used instead.
"""

import ast
import functools
import json
from pathlib import Path

from .checkpoint_folder import CONFIG, PROCESSOR_CONFIG, as_json

_MODELING = Path(__file__).parents[1] / "modeling"
_CONFIG_CLASS = {"FusionEncoder": "FusionEncoderConfig", "DualEncoder": "DualEncoderConfig"}
_PROCESSOR = "DualDistillProcessor"
AUTO_CLASSES = {
    "ForQuestionAnswering": "AutoModelForVisualQuestionAnswering",
    "ForImagesAndTextClassification": "AutoModelForSequenceClassification",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForPreTraining": "AutoModelForPreTraining",
    "ForCaptioning": "AutoModelForImageTextToText",
    "Model": "AutoModel",
    "DualEncoderForImageTextRetrieval": "AutoModelForZeroShotImageClassification",  # the fusion encoder's has none
}
"""A model's name, or its end -> the Auto class that loads it; a head without one is loaded by its class, from the package."""


def split_architecture(architecture: str) -> tuple[str, str]:
    """Return family and head of a model's class.

    Raises:
        ValueError: this version of the package has no such class.

    Example:
        >>> split_architecture("DualEncoderForQuestionAnswering")
        ('DualEncoder', 'ForQuestionAnswering')
    """
    for family in _CONFIG_CLASS:
        if architecture.startswith(family) and architecture in _classes():
            return family, architecture.removeprefix(family)
    raise ValueError(
        f"{CONFIG} names the architecture {architecture!r}, which this version of dual_distill does not have; update "
        f"the "
        "package if a newer one wrote the checkpoint, or give one of its own checkpoints."
    )


def code_files(architecture: str) -> dict[str, bytes]:
    """Return module file -> source: those that configuration, model and processor need, and no other.

    Args:
        architecture: class of the model, as config.json names it.

    Raises:
        ValueError: there is no such class, or no Auto class loads it.

    Example:
        >>> "processing_dual_distill.py" in code_files("FusionEncoderForQuestionAnswering")
        True
    """
    modules = {
        reference.split(".")[0] for reference in {**_model_auto_map(architecture), **_processor_auto_map()}.values()
    }
    wanted, sources = sorted(modules), {}
    while wanted:
        module = wanted.pop()
        if module in sources:
            continue
        sources[module] = (_MODELING / f"{module}.py").read_bytes()
        wanted += [
            node.module
            for node in ast.walk(ast.parse(sources[module]))
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        ]
    return {f"{module}.py": source for module, source in sorted(sources.items())}


def add_code(files: dict[str, bytes | Path], architecture: str) -> dict[str, bytes | Path]:
    """Return the files of a checkpoint with the code, and with the configurations that point to it.

    Raises:
        ValueError: there is no processor beside the model, or see `code_files`.
    """
    processor = files.get(PROCESSOR_CONFIG)
    if not isinstance(processor, bytes):
        raise ValueError(
            f"there is no {PROCESSOR_CONFIG} beside the model, and code without a processor loads nothing; save it too."
        )
    config = files[CONFIG]
    assert isinstance(config, bytes)
    return {
        **files,
        **code_files(architecture),
        CONFIG: as_json({**json.loads(config), "auto_map": _model_auto_map(architecture)}),
        PROCESSOR_CONFIG: as_json({**json.loads(processor), "auto_map": _processor_auto_map()}),
    }


def auto_class(architecture: str) -> str | None:
    """Return the Auto class that loads a model; None where transformers has none."""
    return AUTO_CLASSES.get(split_architecture(architecture)[1], AUTO_CLASSES.get(architecture))


def _model_auto_map(architecture: str) -> dict[str, str]:
    family, loaded_by = split_architecture(architecture)[0], auto_class(architecture)
    if loaded_by is None:
        raise ValueError(
            f"no Auto class of transformers loads {architecture}, so code beside it would be of no use; push without "
            f"it."
        )
    classes = _classes()

    def reference(name: str) -> str:
        return f"{classes[name]}.{name}"

    return {
        "AutoConfig": reference(_CONFIG_CLASS[family]),
        "AutoModel": reference(f"{family}Model"),
        loaded_by: reference(architecture),
    }


def _processor_auto_map() -> dict[str, str]:
    return {"AutoProcessor": f"{_classes()[_PROCESSOR]}.{_PROCESSOR}"}


@functools.cache
def _classes() -> dict[str, str]:
    """Class -> module of `modeling/` that defines it."""
    return {
        node.name: file.stem
        for file in sorted(_MODELING.glob("*.py"))
        for node in ast.parse(file.read_bytes()).body
        if isinstance(node, ast.ClassDef)
    }


__all__ = ["AUTO_CLASSES", "add_code", "auto_class", "code_files", "split_architecture"]
