"""Several processes that train one model: ``torchrun`` starts them, ``torch.distributed`` connects them."""

from deltaprop.distributed.exchange import EXCHANGES, Exchange
from deltaprop.distributed.world import LostError, World, join, leave, refuse_several_processes, world_of

__all__ = ["EXCHANGES", "Exchange", "LostError", "World", "join", "leave", "refuse_several_processes", "world_of"]
