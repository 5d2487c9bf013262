"""Import paths of version 0.1: each resolves to where its names are now, with a DeprecationWarning, until 2.0.

Pickled estimators and models that were saved whole name their classes by these paths.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "data.formats.table": "data.table",
    "data.streaming": "data.encoding",
    "modules": "nn",
    "data.idx": "data.formats.idx",
    "initialization": "nn.init",
    "layers": "nn.layers",
    "perceptron": "nn.perceptron",
    "ops": "core",
    "ops.activations": "core.activations",
    "ops.cross_entropy": "core.losses",
    "ops.linear": "core.linear",
    "ops.losses": "core.losses",
    "ops.primitive": "core.function",
    "training.console": "cli.console",
    "training.reporter": "training.report.reporter",
    "verify": "gradcheck",
    "verify.comparing": "tracing.compare",
    "verify.gradients": "gradcheck.check",
    "verify.library": "gradcheck.library",
    "verify.observe": "tracing.capture",
    "verify.page": "tracing.page",
    "verify.quantities": "tracing.summary",
    "verify.report": "gradcheck.report",
    "verify.steps": "tracing.worked_example",
    "verify.trace": "tracing.trace",
    "verify.trial": "gradcheck.context",
    "trained": "inference",
    "trained.answers": "inference.predictions",
    "trained.judging": "inference.evaluation",
    "trained.model": "inference.model",
    "trained.rows": "inference.inputs",
    "estimators": "sklearn",
    "estimators.base": "sklearn.base",
    "estimators.classifier": "sklearn.classifier",
    "estimators.parameters": "sklearn.parameters",
    "estimators.regressor": "sklearn.regressor",
    "export": "inference.export",
    "export.parity": "inference.export",
    "export.whole": "inference.export.deployment",
}

RENAMED = {
    "Judgement": "EvaluationReport",
    "LayerView": "Layer",
    "ResidualLoss": "ElementwiseLoss",
    "Choices": "TableOptions",
    "FORMATS": "EXPORTS",
    "FromArrays": "InputBlocks",
    "FromTable": "InputBlocks",
    "Room": "CacheConfig",
    "Subject": "CheckTarget",
    "TracedLayer": "LayerRecord",
    "Trial": "CheckContext",
    "Whole": "DeploymentModule",
    "answers": "prediction_batches",
    "observe": "capture_layers",
}


class _OldPaths(MetaPathFinder, Loader):
    """Finds a module of an old path, whose attributes are those of the new one."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        old = fullname.removeprefix("deltaprop.")
        if old == fullname or old not in MOVED:
            return None
        return ModuleSpec(fullname, self, is_package=any(name.startswith(f"{old}.") for name in MOVED))

    def exec_module(self, module: ModuleType) -> None:
        new = f"deltaprop.{MOVED[module.__name__.removeprefix('deltaprop.')]}"
        warnings.warn(
            f"{module.__name__} is {new} now; the old name will be removed in version 2.0",
            DeprecationWarning,
            stacklevel=2,
        )
        current = importlib.import_module(new)
        module.__doc__ = current.__doc__

        def attribute(name: str) -> Any:
            if name.startswith("__") and name != "__all__":  # __path__ above all: submodules would be loaded twice
                raise AttributeError(name)
            return getattr(current, name if hasattr(current, name) else RENAMED.get(name, name))

        module.__getattr__ = attribute  # type: ignore[method-assign]  # PEP 562


def renamed_in(module: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module that has kept its path: old names of its classes, with a warning."""

    def attribute(name: str) -> Any:
        new = RENAMED.get(name)
        if new not in vars(sys.modules[module]):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{name} is {new} now; the old name will be removed in version 2.0", DeprecationWarning, 2)
        return getattr(sys.modules[module], new)

    return attribute


sys.meta_path.append(_OldPaths())
