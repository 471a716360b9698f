"""transformers' own common tests of models, configurations and processors, run on ours: `pytest -m peer` (network).

They come from the source distribution of the version that is installed, not as copied code. It leaves three files out,
which stand here as empty, and a function of its continuous integration. Needs `pip install parameterized`. Tests that
do not fit are listed with the reason.
"""

import importlib
import subprocess
import sys
import tarfile
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

import dual_distill.modeling as modeling

pytestmark = pytest.mark.peer
pytest.importorskip("parameterized", reason="parameterized is not installed")

VERSION = transformers.__version__
PACKAGE = "transformers_common_tests"
LEFT_OUT = {
    "__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin: pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


def suite(name: str):
    """A file of transformers' tests, downloaded once."""
    folder = Path(tempfile.gettempdir(), f"transformers-{VERSION}-tests")
    package = folder / PACKAGE
    if not package.is_dir():
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder)]
        source_alone = ["--no-binary", ":all:", "--no-build-isolation"]
        subprocess.run([*download, *source_alone, f"transformers=={VERSION}"], check=True)
        with tarfile.open(folder / f"transformers-{VERSION}.tar.gz") as archive:
            members = [one for one in archive.getmembers() if one.name.startswith(f"transformers-{VERSION}/tests/")]
            archive.extractall(folder, members, filter="data")
        source = folder / f"transformers-{VERSION}" / "tests"
        for file, text in LEFT_OUT.items():
            (source / file).parent.mkdir(exist_ok=True)
            (source / file).write_text(text, encoding="utf-8")
        source.rename(package)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module(f"{PACKAGE}.{name}")


common = suite("test_modeling_common")
TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
TEXT = {"vocab_size": 99, "max_position_embeddings": 20, **TOWER}
IMAGE = {"image_size": 16, "patch_size": 8, **TOWER}

TWO_TOWERS = "two towers have two of each: `text_model_output`, `vision_model_output` (tests/modeling/test_outputs.py)"
NO_LOSS = "a model without a head has no loss"
POOLER = "words do not pass through the pooler, which is there for `pooler_output` and gets no gradient"
INAPPLICABLE = {
    "": {
        "test_eager_matches_sdpa_inference": "gives a text without an image (tests/modeling/test_attention.py)",
        "test_model_outputs_equivalence": "subtracts masks, which are bool here (tests/modeling/test_outputs.py)",
        "test_generation_tester_mixin_inheritance": "asks for a mixin that the source distribution leaves out",
    },
    "DualEncoder": {
        "test_attention_outputs": TWO_TOWERS,
        "test_hidden_states_output": TWO_TOWERS,
        "test_retain_grad_hidden_states_attentions": TWO_TOWERS,
    },
    "DualEncoderModel": {"test_training": NO_LOSS},
    "FusionEncoderModel": {"test_training": NO_LOSS},
    "FusionEncoderForCaptioning": {"test_training": POOLER},
    "FusionEncoderForMaskedLM": {"test_training": POOLER},
    "DualEncoderForImageTextRetrieval": {"test_training": "the interaction takes no part and gets no gradient"},
}


class Tester:
    """What the common tests ask of a model: its configuration, and a batch."""

    batch_size, is_training, hidden_size, num_hidden_layers, num_attention_heads = 3, True, 32, 2, 4
    seq_length = 7 + 1 + 4  # words, CLS, patches

    def __init__(self, get_config: Callable[[], transformers.PreTrainedConfig]):
        self.get_config = get_config

    def prepare_config_and_inputs_for_common(self):
        texts = {"input_ids": common.ids_tensor([3, 7], 99), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
        images = {
            "pixel_values": common.floats_tensor([3, 1, 3, 16, 16]),
            "pixel_mask": torch.ones(3, 1, 16, 16).long(),
        }
        return self.get_config(), {**texts, **images}

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


class CommonTests(common.ModelTesterMixin):
    """The common tests of one class."""

    has_attentions, is_encoder_decoder, test_missing_keys, test_torch_exportable = True, False, False, False
    get_config: Callable[[], transformers.PreTrainedConfig]

    def setUp(self):
        self.model_tester = Tester(type(self).get_config)

    def _prepare_for_class(self, inputs, model_class, return_labels=False):
        words, ids = inputs["input_ids"], torch.arange(3)
        labels = {
            "FusionEncoderForMaskedLM": {"labels": words},
            "FusionEncoderForCaptioning": {"labels": words},
            "FusionEncoderForImageTextRetrieval": {"labels": torch.ones(3, 1)},
            "DualEncoderForImageTextRetrieval": {"return_loss": True},
        }
        if model_class.__name__.endswith("PreTraining"):
            asked = {"masked_input_ids": words, "masked_labels": words, "image_ids": ids, "caption_ids": ids}
        else:
            asked = labels.get(model_class.__name__, {"labels": torch.zeros(3, dtype=torch.long)})
        return {**inputs, **(asked if return_labels else {})}


def fusion_config() -> modeling.FusionEncoderConfig:
    tokens = {"bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4}
    return modeling.FusionEncoderConfig(**{**TEXT, **IMAGE, **tokens})


def dual_config() -> modeling.DualEncoderConfig:
    return modeling.DualEncoderConfig(text_config=TEXT, vision_config=IMAGE)


def peer_class(model_class, get_config) -> type:
    """The common tests of a class, those that do not fit skipped with their reason."""
    skipped = {}
    for kind, reasons in INAPPLICABLE.items():
        for prefix, reason in reasons.items() if model_class.__name__.startswith(kind) else ():
            for name in (name for name in dir(CommonTests) if name.startswith(prefix)):
                skipped[name] = unittest.skip(reason)(getattr(CommonTests, name))
    fields = {"all_model_classes": (model_class,), "get_config": staticmethod(get_config)}
    composite = {"_is_composite": get_config is dual_config}
    return type(f"Test{model_class.__name__}", (CommonTests, unittest.TestCase), {**skipped, **fields, **composite})


# One class of tests for each class of models.
for _name in dir(modeling):
    _class = getattr(modeling, _name)
    if isinstance(_class, type) and _name.startswith(("FusionEncoder", "DualEncoder")) and hasattr(_class, "forward"):
        if _name.endswith(("PreTrainedModel", "TextModel", "VisionModel")):
            continue
        globals()[f"Test{_name}"] = peer_class(_class, dual_config if _name.startswith("Dual") else fusion_config)


# Of transformers' continuous integration: where a URL lies in its cache.
sys.modules["fetch_hub_objects_for_ci"] = SimpleNamespace(url_to_local_path=lambda url, **options: url)


class TestProcessor(suite("test_processing_common").ProcessorTesterMixin, unittest.TestCase):
    processor_class = modeling.DualDistillProcessor
    test_processor_text_has_no_visual = unittest.skip("rows of a batch have equally many images")(lambda self: None)
    test_subprocessor_defaults_1_images = unittest.skip("pixels have an axis of images")(lambda self: None)
    test_subprocessor_defaults_preserved_by_kwargs_0_images = unittest.skip(
        "texts are padded to the longest, whatever the tokenizer's own configuration says"
    )(lambda self: None)

    @classmethod
    def _setup_tokenizer(cls):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "lower", "newer", "test", "string", "upper"]
        return transformers.BertTokenizer({word: i for i, word in enumerate(words)}, model_max_length=200)

    @classmethod
    def _setup_image_processor(cls):
        return transformers.ViTImageProcessorPil(size={"height": 20, "width": 20})


class TestConfigurations(unittest.TestCase):
    model_tester = Tester(dual_config)

    def test_configurations(self):
        tester = suite("test_configuration_common").ConfigTester
        tester(self, modeling.FusionEncoderConfig, hidden_size=32, num_attention_heads=4).run_common_tests()
        shared = ["hidden_size", "num_attention_heads"]
        tester(self, modeling.DualEncoderConfig, common_properties=shared, projection_dim=6).run_common_tests()
