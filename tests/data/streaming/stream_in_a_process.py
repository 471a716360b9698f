"""Trains a tiny model on a stream with a real Trainer, and may be killed; `test_stream.py` starts it.

python stream_in_a_process.py PAIRS OUTPUT LAST_STEP KILL_AT WORKERS
Each process writes the rows of each step to OUTPUT/rows_RANK.txt; at step KILL_AT (0: never) it is killed by SIGKILL.
"""

import os
import signal
import sys
from pathlib import Path


def collate(rows):
    import torch

    return {
        "numbers": torch.tensor([int(row["caption"].split()[-1]) for row in rows]),
        "epochs": torch.tensor([row["__epoch__"] for row in rows]),
    }


def sources(folder):
    return [
        {"path": f"{folder}/many/*.tar", "kind": "webdataset", "weight": 2},
        {"path": f"{folder}/few/*.tar", "kind": "webdataset"},
    ]


def main() -> None:
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    from dual_distill.data import ImageTextLoader, ImageTextStreamCallback, load_image_text_stream

    pairs, output = sys.argv[1], Path(sys.argv[2])
    last_step, kill_at, workers = map(int, sys.argv[3:6])

    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, numbers, epochs):
            with (output / f"rows_{os.environ.get('RANK', '0')}.txt").open("a") as file:
                for number, epoch in zip(numbers.tolist(), epochs.tolist(), strict=True):
                    file.write(f"{trainer.state.global_step} {epoch} {number}\n")
            return {"loss": (self.weight - numbers.float().mean() / 100) ** 2}

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    class StreamTrainer(Trainer):
        def get_train_dataloader(self):
            part = self.train_dataset.split(self.args.process_index, self.args.world_size)
            return ImageTextLoader(
                part, self.args.per_device_train_batch_size, collate, self.args.dataloader_num_workers
            )

    arguments = TrainingArguments(
        str(output),
        max_steps=last_step,
        save_steps=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        dataloader_num_workers=workers,
        ignore_data_skip=True,
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        **({"ddp_backend": "gloo"} if "WORLD_SIZE" in os.environ else {}),
    )
    stream = load_image_text_stream(sources(pairs), seed=4, shuffle_buffer=5)
    trainer = StreamTrainer(Tiny(), arguments, train_dataset=stream, callbacks=[ImageTextStreamCallback(), Kill()])
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(output)))


if __name__ == "__main__":
    main()
