"""A run of tiny models on pairs, alone or under torchrun; `test_pretraining_trainer.py` starts it.

torchrun --nproc_per_node 2 two_processes_pairs.py OUTPUT ROWS_A_PROCESS pretraining|retrieval EVALUATION_ROWS [fsdp2]
"""

import json
import os
import sys
from pathlib import Path

import torch


def main() -> None:
    from sharding import cut_into_shards
    from tiny_pairs import (
        dual,
        fusion,
        image_text_collator,
        pair_arguments,
        pair_rows,
        retrieval_collator,
        retrieval_dual,
        retrieval_fusion,
    )

    from dual_distill.trainer.image_text_trainers import PreTrainingTrainer, RetrievalTrainer

    output, rows, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    backend = {"ddp_backend": "gloo"} if "WORLD_SIZE" in os.environ else {}
    arguments = pair_arguments(
        output,
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        eval_strategy="epoch",
        num_train_epochs=2,
        **({"ranking_negatives": 3} if kind == "retrieval" else {}),
        **backend,
    )
    sharded = sys.argv[5:] == ["fsdp2"]
    if sharded:
        cut_into_shards(arguments)
    model, teacher, collator, trainer_class = (
        (dual(interaction_layers=1), fusion(), image_text_collator, PreTrainingTrainer)
        if kind == "pretraining"
        else (retrieval_dual(interaction_layers=1), retrieval_fusion(), retrieval_collator, RetrievalTrainer)
    )
    trainer = trainer_class(
        model,
        arguments,
        teacher=teacher,
        train_dataset=pair_rows(24),
        eval_dataset=pair_rows(int(sys.argv[4])),
        data_collator=collator,
    )
    assert trainer.is_fsdp_enabled == sharded
    trainer.train()
    trainer.save_model(str(output / "model"))
    if trainer.is_world_process_zero():
        (output / "logs.json").write_text(json.dumps([trainer.args.world_size, trainer.state.log_history]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
