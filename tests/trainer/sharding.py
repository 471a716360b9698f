"""How runs of two processes without an accelerator are cut into shards."""

import json
import os
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parents[2] / "recipes" / "accelerate"


def deepspeed(stage: int) -> dict[str, Any]:
    """The recipe, with another stage of ZeRO."""
    settings = json.loads((RECIPES / "deepspeed_zero2.json").read_text())
    settings["zero_optimization"]["stage"] = stage
    return settings


def cut_into_shards(arguments: Any) -> None:
    """Switch FSDP2 on as `recipes/accelerate/fsdp2.yaml` does on GPUs.

    `accelerate launch` leaves it off where there is no accelerator, so its state is set by hand; torch's FSDP2 and gloo
    do the rest on processors too.
    """
    assert arguments.device.type == "cpu"  # asking for it starts the process group
    import yaml
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, TorchDynamoPlugin

    fields = yaml.safe_load((RECIPES / "fsdp2.yaml").read_text())["fsdp_config"]
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
