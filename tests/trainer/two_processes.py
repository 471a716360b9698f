"""A run of the tiny pair, alone or under torchrun; `test_distributed.py` starts it.

torchrun --nproc_per_node 2 two_processes.py OUTPUT ROWS_A_PROCESS with_teacher|without_teacher [streamed]
[uneven] [few] [attention_alone] [cached] [zero1|zero2|zero3]
"""

import faulthandler
import json
import os
import sys
from pathlib import Path

import torch

LONGEST = 240  # seconds; a process that takes longer says where it stands, and ends


class Streamed(torch.utils.data.IterableDataset):
    """Rows of no length."""

    def __init__(self, rows: list[dict]):
        self.rows = rows

    def __iter__(self) -> object:
        return iter(self.rows)


def main() -> None:
    from sharding import deepspeed

    from conftest import tiny_arguments, tiny_collator, tiny_rows, tiny_student, tiny_teacher
    from dual_distill.trainer import DistillationTrainer

    faulthandler.dump_traceback_later(LONGEST, exit=True)
    output, rows, pair, *kinds = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    fields = {"soft_label_weight": 0.0, "activation_checkpointing": True} if "attention_alone" in kinds else {}
    fields |= {"max_steps": 3} if "streamed" in kinds else {}
    fields |= {"cache_teacher": "attention"} if "cached" in kinds else {}
    stages = [int(kind[-1]) for kind in kinds if kind.startswith("zero")]
    fields |= {"deepspeed": deepspeed(stages[0])} if stages and "WORLD_SIZE" in os.environ else {}
    eval_rows = 13 if "uneven" in kinds else 11 if "few" in kinds else 16
    backend = {"ddp_backend": "gloo"} if "WORLD_SIZE" in os.environ else {}
    arguments = tiny_arguments(
        output,
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        eval_strategy="epoch",
        **backend,
        **fields,
    )
    trainer = DistillationTrainer(
        model=tiny_student(),
        args=arguments,
        train_dataset=Streamed(tiny_rows(24)) if "streamed" in kinds else tiny_rows(24),
        eval_dataset=tiny_rows(eval_rows),
        data_collator=tiny_collator,
        **({"teacher": tiny_teacher()} if pair == "with_teacher" else {}),
    )
    trainer.train()
    trainer.save_model(str(output / "model"))
    if trainer.is_world_process_zero():
        (output / "logs.json").write_text(json.dumps([trainer.args.world_size, trainer.state.log_history]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
