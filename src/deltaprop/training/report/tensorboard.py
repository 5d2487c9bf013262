"""What a run writes for TensorBoard, by tag.

======================  ================================================================================================
 tag                     shows
======================  ================================================================================================
 loss/…, accuracy/…,     training progress, and how well the model generalises
 rmse/…
 lr, samples_per_second  learning rate η and training speed
 delta_norm/layer<l>     how much of the error signal reaches layer l (vanishing gradients)
 saturated/…, dead/…     share of σ'(z) that is nearly 0, and of units with σ'(z) = 0 for every sample
 weights/…, biases/…,    distribution of W, b, a and δ of each layer
 activations/…, deltas/…
 pictures/…              first-layer weights, confusion matrix, worst samples, decision boundary or fitted curve
======================  ================================================================================================

The x axis of every chart is the epoch; 0 is before training. Layers are captured on a fixed probe batch, the first rows
of the training part, separately from the training steps, which are not affected.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from deltaprop import core
from deltaprop.explicit.precision import products_in
from deltaprop.tracing.capture import capture_layers, dead_share, delta_norm, formula, saturated_share
from deltaprop.training.evaluate import Evaluation, evaluate
from deltaprop.training.setup import Setup

PROBE_ROWS = 256

EQUATIONS = """
| tag | equation | in words |
| --- | --- | --- |
| FWD | z^l = a^{l−1} (W^l)ᵀ + b^l,  a^l = σ(z^l) | weighted sums of the layer before, then the activation |
| BP1 | δ^L = ∂C/∂a^L ⊙ σ'(z^L) | how the loss depends on z of each output neuron |
| BP2 | δ^l = σ'(z^l) ⊙ (δ^{l+1} W^{l+1}) | the error is propagated back through the weights |
| BP3 | ∂C/∂b^l = Σ_n δ^l_n | gradient of a bias: δ of its neuron, summed over samples |
| BP4 | ∂C/∂W^l = (δ^l)ᵀ a^{l−1} | gradient of a weight: δ above it times activation below it |
| SGD | θ ← θ − η ∂C/∂θ | one step downhill |
"""


class TensorBoardReporter:
    """Writes the events of a run; a context manager.

    Args:
        setup: The run.
        folder: Run folder.
        first: First epoch to write, 0 for a new run; readers drop the events of an interrupted run from this epoch on.
        warn: Called once with a warning if the events cannot be written.
    """

    def __init__(self, setup: Setup, folder: Path, first: int, warn: Callable[[str], None]) -> None:
        self.setup, self.warn, self.failed = setup, warn, False
        self._excepthook, threading.excepthook = threading.excepthook, self._thread_excepthook
        self._open = functools.partial(SummaryWriter, str(folder), purge_step=first)
        self._writer: SummaryWriter | None = None
        self._artist = ThreadPoolExecutor(1)
        self._drawing: tuple[int, Future[dict[str, Any]]] | None = None  # the epoch, and its pictures
        self.x = setup.dataset.train.inputs(slice(PROBE_ROWS))
        self.y = setup.objective.targets(setup.dataset.train.y[:PROBE_ROWS], self.x.dtype)
        self._write("flush")  # creates the file
        if first == 0:
            self._write_texts()

    def __enter__(self) -> TensorBoardReporter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._write_pictures()
        finally:
            self._artist.shutdown()
            self._write("close")
            threading.excepthook = self._excepthook

    def _thread_excepthook(self, arguments: threading.ExceptHookArgs) -> None:
        """Omit the traceback of the writer's own thread: its error is raised by the next call."""
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            self._excepthook(arguments)

    def _write(self, method: str, *args: Any, **options: Any) -> None:
        """Call a method of the writer; after the first OSError, which becomes a warning, do nothing."""
        if self.failed:
            return
        try:
            self._writer = self._writer or self._open()
            getattr(self._writer, method)(*args, **options)
        except OSError as error:
            self.failed = True
            self.warn(f"events for TensorBoard cannot be written, the run continues without: {error}")

    def flush(self) -> None:
        """Write all events to disk, before a checkpoint."""
        self._write_pictures()
        self._write("flush")

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Write the metrics of an epoch."""
        for name, value in metrics.items():
            part, _, figure = name.partition("_")
            if part in ("train", "val", "test") and value is not None:
                self._write("add_scalar", f"{figure}/{part}", value, metrics["epoch"])
        for name in ("lr", "samples_per_second"):
            self._write("add_scalar", name, metrics[name], metrics["epoch"])

    def views(self, epoch: int, test: Evaluation | None = None) -> None:
        """Write histograms and δ norms, and have the pictures drawn, unless ``log_every=0``.

        They take longer than an epoch of a small network, so they are drawn while training goes on if a core is unused,
        from a copy of the model, and written before the next ones or a checkpoint.
        """
        setup = self.setup
        if self.failed or not setup.config.log_every:
            return
        self._write_layers(epoch)
        test = test or evaluate(setup.model, setup.objective, setup.dataset.test, setup.dataset.target_scaling)
        if test is not None:
            self._write_pictures()
            now = replace(setup, model=copy.deepcopy(setup.model))
            self._drawing = epoch, self._artist.submit(_draw, now, test)
            if setup.parts_at_once == 1:
                self._write_pictures()

    def _write_pictures(self) -> None:
        """Write the pictures that are being drawn, once they are."""
        if self._drawing is not None:
            epoch, pictures = self._drawing
            self._drawing = None
            for name, image in pictures.result().items():
                self._write("add_image", f"pictures/{name}", image, epoch, dataformats="HWC")

    def end(self, metrics: dict[str, Any]) -> None:
        """Write the settings as hyperparameters, with the last metrics, into the same run."""
        config = self.setup.config
        names = ("data", "init", "lr", "momentum", "nesterov", "weight_decay", "lr_schedule", "batch_size", "epochs")
        settings = {name: getattr(config, name) for name in (*names, "seed", "dtype", "engine")}
        settings["hidden"] = "-".join(map(str, config.hidden)) or "none"
        settings["activation"] = " ".join(config.activations) or "none"
        settings["loss"] = self.setup.objective.name
        figures = {f"hparam/{n}": v for n, v in metrics.items() if n.startswith("test_") and v is not None}
        self._write("add_hparams", settings, figures, run_name=".", global_step=metrics["epoch"])

    def _write_layers(self, epoch: int) -> None:
        with products_in(self.setup.config.precision, self.x.device):
            layers = capture_layers(self.setup.model, self.setup.objective.call, self.x, self.y)
        for number, layer in enumerate(layers, start=1):
            tensors = {"weights": layer.weight, "biases": layer.bias, "activations": layer.a, "deltas": layer.delta}
            shares = {"saturated": saturated_share(layer), "dead": dead_share(layer)}
            for tag, tensor in tensors.items():
                if tensor is not None:
                    self._write("add_histogram", f"{tag}/layer{number}", tensor, epoch)
            for tag, value in {"delta_norm": delta_norm(layer), **shares}.items():
                if value is not None:
                    self._write("add_scalar", f"{tag}/layer{number}", value, epoch)

    def _write_texts(self) -> None:
        config = self.setup.config
        resolved = self.setup.to_json()["resolved"].items()
        settings = [(name, _plain(value)) for name, value in config.to_json().items()]
        settings += [(f"{name} (resolved)", _plain(value)) for name, value in resolved if not name.endswith("scaling")]
        rows = "\n".join(f"| {name} | {value} |" for name, value in settings)
        self._write("add_text", "config", f"| setting | value |\n| --- | --- |\n{rows}", 0)
        used = dict.fromkeys([*config.activations, config.output_activation])
        formulas = "\n".join(f"- **{n}**: {formula(core.ACTIVATIONS[n])}" for n in used if n != "none")
        self._write("add_text", "equations", f"{EQUATIONS}\n\nThe activations of this run:\n\n{formulas}", 0)
        charts = {  # tags as patterns: the same layout in every run, or TensorBoard draws a chart for each layout
            "norm of δ by layer": ["Multiline", ["delta_norm/.*"]],
            "saturated share by layer": ["Multiline", ["saturated/.*"]],
            "loss": ["Multiline", ["loss/.*"]],
        }
        self._write("add_custom_scalars", {"all layers in one chart": charts})


def _draw(setup: Setup, test: Evaluation) -> dict[str, Any]:
    from deltaprop.training.report import plots  # matplotlib takes half a second to import

    return plots.pictures(setup, test)


def _plain(value: object) -> str:
    """Return the value of a setting as its flag has it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
