"""What `import dual_distill` gives: every name of the face, and the pipeline by its name."""

from transformers.pipelines import PIPELINE_REGISTRY

import dual_distill


def test_the_face_has_what_its_examples_use() -> None:
    assert {
        "DistillationCollator",
        "DistillationTrainer",
        "DistillationTrainingArguments",
        "FusionEncoderForImageTextRetrieval",
        "FusionEncoderForMaskedLM",
        "load_custom_dataset",
        "load_task",
        "load_teacher",
    } <= set(dual_distill.__all__)
    assert all(hasattr(dual_distill, name) for name in dual_distill.__all__)


def test_importing_the_package_registers_the_pipeline() -> None:
    assert "dual-visual-question-answering" in PIPELINE_REGISTRY.get_supported_tasks()
