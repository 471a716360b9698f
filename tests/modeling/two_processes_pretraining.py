"""Two gloo processes and one with the whole batch, on the models for pre-training; `test_pretraining_processes.py`
starts it.

python two_processes_pretraining.py OUTPUT ddp|fsdp2

The two are forked before the first backward pass: one start of the package for all three.
"""

import multiprocessing
import os
import sys
from pathlib import Path

CASES = {
    "unequal rows": ((1, 2, 5, 3, 8), (11, 12, 13, 14, 19), 3),
    # Captions whose number divides by 3 have no masked words: the second process has none.
    "duplicates": ((1, 2, 2, 1, 3, 4), (11, 13, 14, 12, 15, 12), 3),
    "nothing to draw": ((7, 7, 7, 7), (11, 12, 13, 14), 2),
}


def models():
    """The models by name."""
    from dual_distill.modeling import (
        DualEncoderForImageTextRetrieval,
        DualEncoderForPreTraining,
        FusionEncoderForPreTraining,
    )

    return {
        "fusion": FusionEncoderForPreTraining,
        "dual": DualEncoderForPreTraining,
        "retrieval": DualEncoderForImageTextRetrieval,
    }


def tiny(cls):
    """A model with noise on every parameter, the same in each process."""
    import torch

    from conftest import tiny_config

    torch.manual_seed(5)
    model = cls(tiny_config(cls.config_class))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.train()


def steps(model, body, batches):
    """Losses, draws and gradients of each batch, by name."""
    import torch

    found = {}
    for case, batch in batches.items():
        model.zero_grad(set_to_none=True)
        torch.manual_seed(len(case))  # other noise in the padding of other processes
        output = model(**batch)
        output.loss.backward()
        for name, value in output.items():
            if name.endswith("loss") or name in ("negative_image_rows", "negative_text_rows", "itm_labels"):
                found[f"{case}/{name}"] = value.detach().clone()
        for name, parameter in body.named_parameters():
            if parameter.grad is not None:
                grad = parameter.grad
                found[f"{case}/grad/{name}"] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad.clone()
    return found


def batches(kind, rank=None):
    """Every case's batch: all rows, or those of one of two processes."""
    from conftest import collate_pairs, make_pairs

    made = {}
    for case, (image_ids, caption_ids, first) in CASES.items():
        rows = make_pairs(image_ids, caption_ids)
        mine = {None: rows, 0: rows[:first], 1: rows[first:]}[rank]
        batch = collate_pairs(mine)
        made[case] = {
            name: value for name, value in batch.items() if kind != "retrieval" or not name.startswith("masked")
        }
    return made


def spread(body, way):
    """The model as both processes share it."""
    import torch
    from torch.distributed.fsdp import fully_shard

    from dual_distill.modeling.modeling_layers import TransformerLayer

    if way == "ddp":
        return torch.nn.parallel.DistributedDataParallel(
            body, find_unused_parameters="Retrieval" in type(body).__name__
        )
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    for module in body.modules():
        if isinstance(module, TransformerLayer):
            fully_shard(module, mesh=mesh)
    return fully_shard(body, mesh=mesh)


def main(output: Path, way: str, rank: int | None = None) -> None:
    import torch
    from safetensors.torch import save_file
    from torch import distributed

    torch.set_num_threads(1)
    if rank is not None:
        distributed.init_process_group("gloo", init_method=f"file://{output}/rendezvous", rank=rank, world_size=2)
    found = {}
    for kind, cls in models().items():
        model = body = tiny(cls)
        if rank is not None:
            model = spread(body, way)
        found |= {f"{kind}/{name}": value for name, value in steps(model, body, batches(kind, rank)).items()}
    save_file(found, output / ("alone.safetensors" if rank is None else f"process_{rank}.safetensors"))
    if rank is not None:
        distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    folder, way = Path(sys.argv[1]), sys.argv[2]
    models()  # imports everything once
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=main, args=(folder, way, rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(250)
    if any(process.exitcode != 0 for process in processes):
        for process in processes:
            process.kill()
        sys.exit(f"the processes ended with {[process.exitcode for process in processes]}")
    main(folder, way)
