"""Every notebook runs from its first cell to its last, in a kernel of its own, on tiny models and few rows.

The cell tagged `parameters` is followed by one with the values below; all else is what the notebook says.
"""

from pathlib import Path

import pytest
from PIL import Image
from worlds.tiny_teachers import save_teacher
from worlds.tiny_towers import write_towers

pytestmark = pytest.mark.slow
nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel: pip install 'dual-distill[tools]'")
nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install 'dual-distill[tools]'")

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
TINY = {
    "distil_your_own_vqa_model": 'preset, steps, rows = "smoke", 2, 60',
    "where_does_a_vlm_look": "",
    "search_your_photographs": 'model_name = "student"',
    "any_teacher_any_towers": "scenes, steps, batch_size = 6, 2, 4",
}


@pytest.mark.parametrize("file", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda file: file.stem)
def test_a_notebook_runs(file, tmp_path, monkeypatch):
    # What the notebooks name, for something tiny.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent / "src"))
    save_teacher("smolvlm", tmp_path / "HuggingFaceTB" / "SmolVLM-256M-Instruct")
    write_towers(tmp_path)
    Image.new("RGB", (64, 48), "red").save(tmp_path / "photo.jpg")
    if file.stem == "search_your_photographs":
        from dual_distill import DualDistillProcessor, DualEncoderForQuestionAnswering

        vision, text = (str(tmp_path / name) for name in ("facebook/dinov2-base", "answerdotai/ModernBERT-base"))
        labels = {0: "no", 1: "yes"}
        for part, more in ((DualEncoderForQuestionAnswering, {"id2label": labels}), (DualDistillProcessor, {})):
            part.from_vision_text_pretrained(vision, text, **more).save_pretrained(tmp_path / "student")

    notebook = nbformat.read(file, as_version=4)
    [tagged] = [at for at, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    notebook.cells.insert(tagged + 1, nbformat.v4.new_code_cell(TINY[file.stem]))
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
