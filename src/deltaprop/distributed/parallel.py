"""A model that several processes train by autograd, each on its share of a batch: PyTorch's DDP and FSDP2.

- ``ddp``: each process has the whole model, and gradients are averaged during the backward pass:
  ``DistributedDataParallel`` (Li et al., VLDB 2020).
- ``fsdp``: each process has a part of every parameter, of its gradient and of its momentum. A layer's parameters are
  gathered before its FWD and again before its BP2, and their gradients are averaged and dealt out: ``fully_shard``
  (Zhao et al., VLDB 2023), layer by layer.

Both take a hand-written Function as any other, and both average gradients. With C_r, the mean over the N_r rows of
process r, ∂C/∂θ of the batch is the average of those of (W N_r / N) C_r.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deltaprop.distributed.world import World


def replicate(model: nn.Sequential) -> nn.Module:
    """Return a module that averages the gradients of an MLP over all processes; its parameters are the model's own."""
    from torch.nn.parallel import DistributedDataParallel  # imports the compiler

    network = DistributedDataParallel(model, gradient_as_bucket_view=True)
    # DDP puts gradients together anew after its first backward pass, which changes the order of sums: after a resume
    # the bits would be others. So that pass is one without rows.
    first = next(model.parameters())
    network(first.new_empty(0, first.shape[1])).sum().backward()
    for param in model.parameters():
        param.grad = None
    return network


def shard_parameters(model: nn.Module) -> None:
    """Leave in each process a part of every parameter of a model, linear layer by linear layer, in place."""
    from torch.distributed.device_mesh import init_device_mesh  # slow to import
    from torch.distributed.fsdp import fully_shard

    # By default it would take the accelerator, whatever device the model is on.
    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_part(tensor: Tensor) -> bool:
    """Return whether a process has only a part of a tensor."""
    return hasattr(tensor, "full_tensor")  # a DTensor; importing the class takes half a second


def own(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process has; all of it, if it is whole."""
    return tensor.to_local() if is_part(tensor) else tensor  # type: ignore[attr-defined]


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a process's part of a whole tensor, dealt out as ``like`` is; the tensor itself, if that is whole."""
    if not is_part(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)


def whole_of_first(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Return the tensors whole in process 0, and those that are whole everywhere in the others.

    All processes must call it. Parts are gathered a tensor at a time, into the memory of the CPU.

    Raises:
        LostError: If another process has ended or does not answer.
    """
    found = {}
    for name, tensor in tensors.items():
        if not is_part(tensor):
            found[name] = tensor
            continue
        with world.exchanging(), torch.no_grad():
            gathered = tensor.full_tensor()  # type: ignore[attr-defined]
        if world.is_first:
            found[name] = gathered.cpu()
    return found
