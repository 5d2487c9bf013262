"""Training runs: configuration, loop, run folder, TensorBoard and the terminal.

The command line uses it, and so can Python code::

    from deltaprop.training import TrainConfig, train

    result = train(TrainConfig(data="digits", hidden=(30,), epochs=10))
"""

from deltaprop.training.config import TrainConfig
from deltaprop.training.folds import CrossValidation, cross_validate
from deltaprop.training.loop import TrainingError, train
from deltaprop.training.report.reporter import Result

__all__ = ["CrossValidation", "Result", "TrainConfig", "TrainingError", "cross_validate", "train"]
