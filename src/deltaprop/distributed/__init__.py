"""Several processes that train one model: ``torchrun`` starts them, ``torch.distributed`` connects them."""

from deltaprop.distributed.exchange import EXCHANGES, Exchange, prefers_factors
from deltaprop.distributed.parallel import is_part, own, part_of, replicate, shard_parameters, whole_of_first
from deltaprop.distributed.world import LostError, World, is_one_of_several, join, joined, leave, world_of

__all__ = [
    "EXCHANGES",
    "Exchange",
    "LostError",
    "World",
    "is_one_of_several",
    "is_part",
    "join",
    "joined",
    "leave",
    "own",
    "part_of",
    "prefers_factors",
    "replicate",
    "shard_parameters",
    "whole_of_first",
    "world_of",
]
