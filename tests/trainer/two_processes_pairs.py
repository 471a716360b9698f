"""A run of tiny models on pairs, alone or under torchrun; `test_pretraining_trainer.py` starts it.

torchrun --nproc_per_node 2 two_processes_pairs.py OUTPUT ROWS_A_PROCESS pretraining|retrieval
"""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    from tiny_pairs import (
        dual,
        fusion,
        pair_arguments,
        pair_collator,
        pair_rows,
        retrieval_collator,
        retrieval_dual,
        retrieval_fusion,
    )

    from dual_distill.trainer.pretraining_trainer import PreTrainingTrainer
    from dual_distill.trainer.retrieval_trainer import RetrievalTrainer

    output, rows, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    backend = {"ddp_backend": "gloo"} if "WORLD_SIZE" in os.environ else {}
    arguments = pair_arguments(
        output,
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        eval_strategy="epoch",
        num_train_epochs=2,
        ranking_negatives=3,
        **backend,
    )
    model, teacher, collator, trainer_class = (
        (dual(), fusion(), pair_collator, PreTrainingTrainer)
        if kind == "pretraining"
        else (retrieval_dual(), retrieval_fusion(), retrieval_collator, RetrievalTrainer)
    )
    trainer = trainer_class(
        model,
        arguments,
        teacher=teacher,
        train_dataset=pair_rows(24),
        eval_dataset=pair_rows(16),
        data_collator=collator,
    )
    trainer.train()
    trainer.save_model(str(output / "model"))
    if trainer.is_world_process_zero():
        (output / "logs.json").write_text(json.dumps([trainer.args.world_size, trainer.state.log_history]))


if __name__ == "__main__":
    main()
