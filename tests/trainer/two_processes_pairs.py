"""A run of tiny models on pairs, alone or under torchrun; `test_pretraining_trainer.py` starts it.

torchrun --nproc_per_node 2 two_processes_pairs.py OUTPUT ROWS_A_PROCESS pretraining|retrieval EVALUATION_ROWS [fsdp2]
"""

import json
import os
import sys
from pathlib import Path

import torch


def cut_into_shards() -> None:
    """Switch FSDP2 on as `recipes/accelerate/fsdp2.yaml` does on GPUs.

    `accelerate launch` leaves it off where there is no accelerator, so its state is set by hand; torch's FSDP2 and gloo
    do the rest on processors too.
    """
    import yaml
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, TorchDynamoPlugin

    recipe = Path(__file__).parents[2] / "recipes" / "accelerate" / "fsdp2.yaml"
    fields = yaml.safe_load(recipe.read_text())["fsdp_config"]
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=fields["fsdp_version"],
        auto_wrap_policy=fields["fsdp_auto_wrap_policy"].lower(),
        transformer_cls_names_to_wrap=[fields["fsdp_transformer_layer_cls_to_wrap"]],
        reshard_after_forward=fields["fsdp_reshard_after_forward"],
        state_dict_type=fields["fsdp_state_dict_type"],
        cpu_ram_efficient_loading=fields["fsdp_cpu_ram_efficient_loading"],
        activation_checkpointing=fields["fsdp_activation_checkpointing"],
    )
    AcceleratorState(
        cpu=True, fsdp_plugin=plugin, _from_accelerator=True, dynamo_plugin=TorchDynamoPlugin(), mixed_precision="no"
    )
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}


def main() -> None:
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
        assert arguments.device.type == "cpu"  # asking for it starts the process group
        cut_into_shards()
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
