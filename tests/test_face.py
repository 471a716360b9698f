"""What `import dual_distill` gives: every name of the face, and the pipeline by its name; what the command imports."""

import subprocess
import sys

import pytest
from transformers.pipelines import PIPELINE_REGISTRY

import dual_distill
from dual_distill.hub_cards import push_pretrained


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


def test_importing_the_package_gives_its_models_their_push() -> None:
    assert dual_distill.DualEncoderModel.push_to_hub is push_pretrained


@pytest.mark.parametrize(
    "code",
    [
        "import dual_distill; from transformers import ViltProcessor; from transformers import AutoConfig",
        "from transformers import AutoConfig; import dual_distill",
        "import dual_distill.hub_cards; from transformers import AutoConfig",
        "import dual_distill.regions; from transformers import pipeline, AutoConfig",
        *(
            pytest.param(f"import dual_distill; {imports}", marks=pytest.mark.slow)
            for imports in (
                "from transformers.models.auto import AutoConfig",
                "from transformers.models.auto.configuration_auto import AutoConfig",
                "from transformers.models.auto.modeling_auto import AutoModel; from transformers import AutoConfig",
                "import transformers.models.auto as auto; AutoConfig = auto.AutoConfig",
                "import transformers; AutoConfig = transformers.AutoConfig",
                "from transformers.pipelines import pipeline; from transformers import AutoConfig",
                "from transformers import LlavaForConditionalGeneration, Trainer, AutoConfig",
                "from transformers import AutoImageProcessor; from transformers.pipelines.base import AutoConfig",
                "import dual_distill.regions; from transformers import AutoImageProcessor, AutoConfig",
            )
        ),
    ],
)
def test_ours_are_known_whatever_is_imported_first(code: str, run_fresh) -> None:
    known = (
        "; config = AutoConfig.for_model('dual_distill_dual_encoder'); print(config.model_type)"
        "; from transformers import AutoModel; print(AutoModel._model_mapping[type(config)].__name__)"
        "; from transformers.pipelines import PIPELINE_REGISTRY"
        "; print('dual-visual-question-answering' in PIPELINE_REGISTRY.get_supported_tasks())"
    )
    assert run_fresh(code + known).split() == ["dual_distill_dual_encoder", "DualEncoderModel", "True"]


def test_a_room_by_itself_brings_the_push() -> None:
    code = (
        "import sys, dual_distill; print('torch' in sys.modules); import dual_distill.modeling as modeling; "
        "from dual_distill.hub_cards import push_pretrained; "
        "print(modeling.FusionEncoderModel.push_to_hub is push_pretrained)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_names_are_listed_and_others_are_none() -> None:
    assert {*dual_distill.__all__, "trainer"} <= set(dir(dual_distill))
    with pytest.raises(AttributeError, match="module 'dual_distill' has no attribute 'load_techer'"):
        _ = dual_distill.load_techer


@pytest.mark.parametrize("word, code", [("--help", 0), ("trian", 2)])
def test_help_and_a_typo_import_no_torch(word: str, code: int) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "dual_distill", word]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == code
    assert "dual_distill.cli" in imported
    assert not imported & {"torch", "transformers", "datasets", "huggingface_hub", "dual_distill.modeling"}
