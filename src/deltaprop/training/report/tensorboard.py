"""What a run shows in TensorBoard: one thing for each question that a learner asks.

======================  ================================================================================================
 tag                     answers
======================  ================================================================================================
 loss/…, accuracy/…,     is it learning, and does it hold on data it has not seen?
 rmse/…
 lr, samples_per_second  what is η now, and how fast does it go?
 delta_norm/layer<l>     how much of the error signal reaches layer l? (the vanishing gradient made visible)
 saturated/…, dead/…     which share of σ'(z) is nearly 0, and which units pass nothing for any sample?
 weights/…, biases/…,    how are W, b, a and δ of each layer spread?
 activations/…, deltas/…
 pictures/…              first-layer weights, confusion matrix, worst samples, decision boundary or fitted curve
======================  ================================================================================================

The x axis of every chart is the epoch; 0 is before training. Layers are looked at on a fixed probe batch, the first
rows of the training part, apart from the training steps: looking changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
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
| FWD | z^l = a^{l−1} (W^l)ᵀ + b^l,  a^l = σ(z^l) | each layer weighs the one before and bends it |
| BP1 | δ^L = ∂C/∂a^L ⊙ σ'(z^L) | how much the loss reacts to each output neuron's z |
| BP2 | δ^l = σ'(z^l) ⊙ (δ^{l+1} W^{l+1}) | the error goes back through the weights it came by |
| BP3 | ∂C/∂b^l = Σ_n δ^l_n | a bias gets its neuron's δ |
| BP4 | ∂C/∂W^l = (δ^l)ᵀ a^{l−1} | a weight gets δ above it times activation below it |
| SGD | θ ← θ − η ∂C/∂θ | one step downhill |
"""


class TensorBoardReporter:
    """Writes the events of a run; a context manager.

    Args:
        setup: The run.
        folder: Its folder.
        first: The first epoch that is written now: 0 at birth. What readers have of it and later, from a run that was
            broken off, they drop.
        warn: Told, once, if they cannot be written.
    """

    def __init__(
        self,
        setup: Setup,
        folder: Path,
        first: int = 0,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.setup = setup
        self._excepthook, threading.excepthook = threading.excepthook, self._of_a_thread
        self.warn: Callable[[str], None] = warn
        self.broken = False
        self._guarded(lambda: setattr(self, "writer", SummaryWriter(str(folder), purge_step=first)))
        self.x = setup.dataset.train.inputs(slice(PROBE_ROWS))
        self.y = setup.objective.targets(setup.dataset.train.y[:PROBE_ROWS], self.x.dtype)
        if first == 0:
            self._guarded(self._write_texts)

    writer: SummaryWriter

    def __enter__(self) -> TensorBoardReporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._guarded(lambda: self.writer.close())
        threading.excepthook = self._excepthook

    def _of_a_thread(self, arguments: threading.ExceptHookArgs) -> None:
        """Leave out the traceback of the writer's own thread: what it met is told at the next call."""
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            self._excepthook(arguments)

    def flush(self) -> None:
        """Have on disk what a checkpoint is about to count on."""
        self._guarded(lambda: self.writer.flush())

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Write the figures of an epoch."""
        self._guarded(lambda: self._epoch(metrics))

    def _guarded(self, write: Callable[[], None]) -> None:
        """Write, unless it failed before: a run goes on without its events, and says so once."""
        if self.broken:
            return
        try:
            write()
        except OSError as error:
            self.broken = True
            self.warn(f"events for TensorBoard cannot be written, the run goes on without: {error}")

    def _epoch(self, metrics: dict[str, Any]) -> None:
        epoch = metrics["epoch"]
        for name, value in metrics.items():
            part, _, figure = name.partition("_")
            if part in ("train", "val", "test") and value is not None:
                self.writer.add_scalar(f"{figure}/{part}", value, epoch)
        for name in ("lr", "samples_per_second"):
            self.writer.add_scalar(name, metrics[name], epoch)

    def views(self, epoch: int, test: Evaluation | None = None) -> None:
        """Write the costly views: histograms, δ norms and plots. Does nothing with ``log_every=0``."""
        if self.setup.config.log_every:
            self._guarded(lambda: self._views(epoch, test))

    def _views(self, epoch: int, test: Evaluation | None) -> None:
        self._write_layers(epoch)
        setup = self.setup
        if test is None:
            test = evaluate(setup.model, setup.objective, setup.dataset.test, setup.dataset.target_scaling)
        if test is not None:
            from deltaprop.training.report import plots  # matplotlib: half a second to import

            for name, image in plots.pictures(setup, test).items():
                self.writer.add_image(f"pictures/{name}", image, epoch, dataformats="HWC")

    def end(self, metrics: dict[str, Any]) -> None:
        """Write the settings as hyperparameters beside the last figures, in this same run."""
        self._guarded(lambda: self._end(metrics))

    def _end(self, metrics: dict[str, Any]) -> None:
        config = self.setup.config
        names = ("data", "init", "lr", "momentum", "nesterov", "weight_decay", "lr_schedule", "batch_size", "epochs")
        settings = {name: getattr(config, name) for name in (*names, "seed", "dtype", "engine")}
        settings["hidden"] = "-".join(map(str, config.hidden)) or "none"
        settings["activation"] = " ".join(config.activations) or "none"
        settings["loss"] = self.setup.objective.name
        figures = {f"hparam/{n}": v for n, v in metrics.items() if n.startswith("test_") and v is not None}
        self.writer.add_hparams(settings, figures, run_name=".", global_step=metrics["epoch"])

    def _resolved(self) -> dict[str, Any]:
        resolved: dict[str, Any] = self.setup.to_json()["resolved"]
        return {name: value for name, value in resolved.items() if not name.endswith("scaling")}

    def _write_layers(self, epoch: int) -> None:
        with products_in(self.setup.config.precision, self.x.device):
            layers = capture_layers(self.setup.model, self.setup.objective.call, self.x, self.y)
        for number, layer in enumerate(layers, start=1):
            name = f"layer{number}"
            self.writer.add_histogram(f"weights/{name}", layer.weight, epoch)
            if layer.bias is not None:
                self.writer.add_histogram(f"biases/{name}", layer.bias, epoch)
            self.writer.add_histogram(f"activations/{name}", layer.a, epoch)
            self.writer.add_histogram(f"deltas/{name}", layer.delta, epoch)
            self.writer.add_scalar(f"delta_norm/{name}", delta_norm(layer), epoch)
            for share, value in (("saturated", saturated_share(layer)), ("dead", dead_share(layer))):
                if value is not None:
                    self.writer.add_scalar(f"{share}/{name}", value, epoch)

    def _write_texts(self) -> None:
        setup = self.setup
        settings = "\n".join(f"| {name} | {_plain(value)} |" for name, value in setup.config.to_json().items())
        resolved = "\n".join(f"| {name} (resolved) | {_plain(value)} |" for name, value in self._resolved().items())
        self.writer.add_text("config", f"| setting | value |\n| --- | --- |\n{settings}\n{resolved}", 0)
        used = dict.fromkeys([*setup.config.activations, setup.config.output_activation])
        formulas = "\n".join(f"- **{n}**: {formula(core.ACTIVATIONS[n])}" for n in used if n != "none")
        self.writer.add_text("equations", f"{EQUATIONS}\n\nThe activations of this run:\n\n{formulas}", 0)
        several = {  # patterns, the same for every run: TensorBoard draws a chart of its own for each different layout
            "norm of δ by layer": ["Multiline", ["delta_norm/.*"]],
            "saturated share by layer": ["Multiline", ["saturated/.*"]],
            "loss": ["Multiline", ["loss/.*"]],
        }
        self.writer.add_custom_scalars({"all layers in one chart": several})


def _plain(value: object) -> str:
    """Return a setting as its flag would have it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
