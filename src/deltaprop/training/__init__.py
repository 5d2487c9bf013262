"""Training runs: configuration, loop, run folder, TensorBoard and the terminal.

It is imported by the command line and by whoever wants a run from Python::

    from deltaprop.training import TrainConfig, train

    result = train(TrainConfig(data="digits", hidden=(30,), epochs=10))
"""

from deltaprop.training.config import TrainConfig
from deltaprop.training.loop import TrainingError, train
from deltaprop.training.report.reporter import Result

__all__ = ["Result", "TrainConfig", "TrainingError", "train"]
