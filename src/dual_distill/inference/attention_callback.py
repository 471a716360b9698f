"""Where each word looks, while a model learns: pictures of a few fixed rows, every so many steps."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .attention import attention_maps, draw_attention_picture
from .queries import check_at_least_1
from .sources import fetch_image, load_image

_logger = logging.getLogger(__name__)


class AttentionMapsCallback(TrainerCallback):
    """Draws the attention of fixed rows before the first step, then every `every_steps` steps.

    Each picture is a file, `attention/ROW-step-N.png` in the output folder, and an image of the trackers whose run is
    under way (wandb, trackio). The model is in eval mode meanwhile and nothing random is drawn, so that training goes
    on as it would without.

    Args:
        processor: of the model.
        rows: image (what `load_image` takes) and text of each row, of the validation split say.
        every_steps: steps between two pictures.
        teacher: a teacher and its processor, drawn beside the student on the same scale.

    Raises:
        ValueError: there are no rows, or `every_steps` is below 1.

    Example:
        >>> AttentionMapsCallback(None, [], every_steps=100)
        Traceback (most recent call last):
        ValueError: there are no rows to draw; give image and text of one or more.
    """

    def __init__(
        self, processor: Any, rows: Sequence[tuple[Any, str]], every_steps: int, teacher: tuple[Any, Any] | None = None
    ) -> None:
        if not rows:
            raise ValueError("there are no rows to draw; give image and text of one or more.")
        check_at_least_1("every_steps", every_steps)
        self._processor, self._every_steps, self._teacher = processor, every_steps, teacher
        # Read now, decoded as each processor asks.
        self._rows = [(fetch_image(image, number), text) for number, (image, text) in enumerate(rows)]
        for number, (image, _) in enumerate(self._rows):
            load_image(image, number)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse a model that lies in parts on several devices; draw what it knows before the first step."""
        if args.fsdp or args.deepspeed:
            raise ValueError(
                "attention maps are drawn by one process, which holds no whole model here; leave them out."
            )
        if state.global_step == 0:
            self.on_step_end(args, state, control, **kwargs)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Draw, every so many steps."""
        if state.global_step % self._every_steps or not state.is_world_process_zero:
            return

        folder = Path(args.output_dir, "attention")
        folder.mkdir(parents=True, exist_ok=True)
        pictures = {}
        was_training = model.training
        for number, (image, text) in enumerate(self._rows):
            file = folder / f"{number}-step-{state.global_step:06}.png"
            pictures[f"attention/{number}"] = file
            self._draw(model, image, text).save(file)
        model.train(was_training)
        _log(pictures, state.global_step)

    def _draw(self, model: Any, image: Any, text: str) -> Image.Image:
        words, maps = attention_maps(model, self._processor, image, text)
        drawn = {"student": maps}
        if self._teacher is not None:
            drawn = {"teacher": attention_maps(*self._teacher, image, text, grid=maps.shape[1:])[1], **drawn}
        return draw_attention_picture(load_image(image, text), words, drawn, question=text)


def _log(pictures: dict[str, Path], step: int) -> None:
    """Give pictures to the trackers that are at work, as transformers gives them its numbers."""
    for name in ("wandb", "trackio"):
        tracker: Any = sys.modules.get(name)
        if tracker is None or (name == "wandb" and tracker.run is None):
            continue
        try:
            images = {title: tracker.Image(str(file)) for title, file in pictures.items()}
            # wandb's callback counts by a metric of its own, trackio's by the step.
            options = {"step": step} if name == "trackio" else {}
            tracker.log({**images, **({"train/global_step": step} if name == "wandb" else {})}, **options)
        except RuntimeError as error:  # trackio without a run
            _logger.info("attention maps were not logged to %s: %s", name, error)
