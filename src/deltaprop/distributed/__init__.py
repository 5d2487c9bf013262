"""Several processes that train one model: ``torchrun`` starts them, ``torch.distributed`` connects them."""

from deltaprop.distributed.exchange import EXCHANGES, Exchange
from deltaprop.distributed.world import LostError, World, join, joined, leave, world_of

__all__ = ["EXCHANGES", "Exchange", "LostError", "World", "join", "joined", "leave", "world_of"]
