"""A run of the tiny region-based pair, alone or under torchrun; `test_distillvlm_training.py` starts it.

torchrun --nproc_per_node 2 two_region_processes.py OUTPUT ROWS_A_PROCESS
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


def main() -> None:
    from region_pair import region_rows, region_trainer

    output, rows = Path(sys.argv[1]), int(sys.argv[2])
    backend = {"ddp_backend": "gloo"} if "WORLD_SIZE" in os.environ else {}
    trainer = region_trainer(
        output,
        rows=region_rows(24),
        eval_rows=region_rows(16),
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        eval_strategy="epoch",
        **backend,
    )
    trainer.train()
    trainer.save_model(str(output / "model"))
    state = {name: tensor.contiguous() for name, tensor in trainer.distillation_objective.state_dict().items()}
    save_file(state, output / f"objective-{trainer.args.process_index}.safetensors")
    if trainer.is_world_process_zero():
        (output / "logs.json").write_text(json.dumps([trainer.args.world_size, trainer.state.log_history]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
