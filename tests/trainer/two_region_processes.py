"""A run of the tiny region-based pair, alone or under torchrun; `test_distillvlm_training.py` starts it.

torchrun --nproc_per_node 2 two_region_processes.py OUTPUT ROWS_A_PROCESS [fsdp2|zero1|zero2|zero3] [resumed]
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


def parameters(trainer: object) -> list[torch.Tensor]:
    """What this process holds of student and objective."""
    both = [*trainer.accelerator.unwrap_model(trainer.model).parameters(), *trainer.distillation_objective.parameters()]
    # FSDP2 and ZeRO-3 hold a part of each.
    return [getattr(one, "ds_tensor", getattr(one, "to_local", lambda one=one: one)()) for one in both]


def main() -> None:
    from region_pair import region_rows, region_trainer
    from sharding import cut_into_shards, deepspeed

    output, rows, kinds = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    fields: dict = {"ddp_backend": "gloo"} if "WORLD_SIZE" in os.environ else {}
    for kind in kinds:
        fields |= {"deepspeed": deepspeed(int(kind[-1]))} if kind.startswith("zero") else {}
    if "resumed" in kinds:  # AdamW, whose state must come back
        fields |= {"optim": "adamw_torch", "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 3}
    fields |= {"shard": cut_into_shards} if "fsdp2" in kinds else {}
    options = dict(
        rows=region_rows(24),
        eval_rows=region_rows(16),
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        eval_strategy="epoch",
        **fields,
    )
    trainer = region_trainer(output, **options)
    assert trainer.is_sharded == any(kind.startswith(("fsdp", "zero")) for kind in kinds)
    trainer.train()
    if "resumed" in kinds:
        whole, trainer = trainer, region_trainer(output, **options)
        trainer.train(resume_from_checkpoint=str(output / "checkpoint-3"))
        for one, other in zip(parameters(whole), parameters(trainer), strict=True):
            torch.testing.assert_close(one, other)
    trainer.save_model(str(output / "model"))
    state = {name: tensor.contiguous() for name, tensor in trainer.distillation_objective.state_dict().items()}
    save_file(state, output / f"objective-{trainer.args.process_index}.safetensors")
    if trainer.is_world_process_zero():
        (output / "logs.json").write_text(json.dumps([trainer.args.world_size, trainer.state.log_history]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
