"""Student + frozen teacher + objective -> named losses, and the record of the run beside the weights."""

from .captioning_trainer import CaptioningTrainer, SelfCriticalTrainer
from .compatibility import check_compatibility, check_options, content_problems
from .distillation_config import DistillationTrainingArguments
from .distillation_trainer import DistillationTrainer
from .evaluation import (
    EvaluationReport,
    captions_by_image,
    captions_of_images,
    describe_images,
    predict_answers,
    prediction_records,
    rank_answers,
    report_answers,
)
from .image_text_trainers import PreTrainingTrainer, RetrievalTrainer
from .preflight import note_preflight, run_preflight
from .raw_dataset import raw_image_columns
from .recording import differing_fields
from .sealed_trainer import newest_whole
from .stored_teacher import StoredTeacher, is_store, open_teacher, reads_student_tokens, view_settings, write_views
from .teaching_map import TeachRows
