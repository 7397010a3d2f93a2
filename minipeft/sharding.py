"""Weights, gradients and moments spread over the processes of a team, for models that do not fit one of them.

Each process keeps a part of every tensor. A block's weights are brought together just before it computes and dropped
after it, forward and backward; gradients are summed so that each process gets those of its part, and its optimizer
steps on nothing else. That is PyTorch's FSDP2 (`fully_shard`): a group for each block, and one around them for the
embeddings, the last norm and the head.
Source: Rajbhandari et al. 2020, §5 (ZeRO stage 3); Zhao et al. 2023.
"""

import functools
from typing import Any

import torch

from minipeft.distributed import Team, whole
from minipeft.gpt2 import GPT2
from minipeft.methods.full import FullFinetuning, TrainedCopy
from minipeft.tuned import Tuned

FORWARD_METHODS = ("loss", "hidden", "logits")
"""What training and evaluation call of a model, beside `forward`."""


def shard(model: GPT2, team: Team) -> GPT2:
    """Spread the weights of `model` over the team, in place; `model` is best on the CPU, from where each block moves.

    Its parameters then are the sharded ones, which an optimizer made from here on steps on. Gradients of all losses
    are summed, of each micro-batch at once: kept until the last one, they would be whole in every process.
    Raises ValueError if there is no team.
    """
    from torch.distributed.device_mesh import init_device_mesh  # here, as this takes a second
    from torch.distributed.fsdp import FSDPModule, fully_shard

    check_team(team)
    assert team.device is not None
    mesh = init_device_mesh(team.device.type, (team.size,))
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)  # a sum, no average: each loss is a share already
        module.set_force_sum_reduction_for_comms(True)
    _bring_weights_for(model)
    return model


def check_team(team: Team) -> None:
    """Raise ValueError unless there are processes to spread weights over."""
    if team.size == 1:
        raise ValueError("--shard spreads a model over several processes; start them with torchrun --nproc-per-node N.")


def in_one_piece(model: GPT2, team: Team) -> GPT2:
    """A plain model with all weights of a sharded one, on the CPU, for the writer; for the others one of no numbers.

    They come one after another: beside its shards a process holds one whole tensor at a time.
    """
    with torch.device("meta"):
        plain = GPT2(model.config)
    tensors = {}
    for name, tensor in model.state_dict().items():
        one = whole(tensor).cpu()
        if team.is_writer:
            tensors[name] = one
    if team.is_writer:
        plain.load_state_dict(tensors, assign=True)
    for name, parameter in model.named_parameters():
        plain.get_parameter(name).requires_grad_(parameter.requires_grad)
    return plain.train(model.training)


def shard_tuned(tuned: Tuned, team: Team) -> None:
    """Spread the weights that full finetuning trains; the frozen base stays where it is, best on the CPU.

    Raises ValueError if another method is attached.
    """
    if not isinstance(tuned.method, FullFinetuning):
        raise ValueError(
            f"--shard spreads weights that are trained, those of full; {tuned.method.name} trains few, and its "
            "processes share the batch without it."
        )
    shard(tuned.model, team)


def tuned_in_one_piece(tuned: Tuned, team: Team) -> Tuned:
    """The same attachment with all its weights for the writer; for the others one of no numbers."""
    model = in_one_piece(tuned.model, team)
    return Tuned(tuned.base, tuned.method, model, TrainedCopy(model))


def _bring_weights_for(model: GPT2) -> None:
    """Let other methods than `forward` find the outer group's weights, too; where one calls another, once for both."""
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    assert isinstance(model, FSDPModule)
    running = False

    def brought(plain: Any, bringing: Any) -> Any:
        @functools.wraps(plain)
        def method(*args: Any, **kwargs: Any) -> Any:
            nonlocal running
            if running:
                return plain(*args, **kwargs)
            running = True
            try:
                return bringing(*args, **kwargs)
            finally:
                running = False
                if not torch.is_grad_enabled():  # no backward pass will drop them, and a step would make them stale
                    model.reshard()

        return method

    for name in FORWARD_METHODS:
        plain = getattr(model, name)
        register_fsdp_forward_method(model, name)
        setattr(model, name, brought(plain, getattr(model, name)))
