"""Inputs of other layouts and sizes: strides, expanded tensors, none, one sample, other numbers of dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deltaprop.verify.checks import Finding, Found, Skip, Trial, difference, told
from deltaprop.verify.differences import place, slopes
from deltaprop.verify.subject import Subject, dot, gradients, random_like


def strided(t: Tensor) -> Tensor:
    """Return the same numbers with other strides: axes in reverse, and every second entry of a memory twice as wide."""
    axes = tuple(range(t.dim()))[::-1]
    memory = torch.full((*t.shape[::-1], 2), float("nan"), dtype=t.dtype, device=t.device)
    memory[..., 0] = t.detach().permute(axes)
    return memory[..., 0].permute(axes)


def non_contiguous(trial: Trial) -> Found:
    """Inputs and v whose entries do not lie side by side give the same gradients."""
    return _same_as_contiguous(trial, [strided(t) for t in trial.subject.values], [strided(t) for t in trial.v])


def expanded(trial: Trial) -> Found:
    """A v that is one number spread over all entries, as ``.sum()`` gives it, and inputs that are one row spread."""
    values = [t[:1].expand_as(t) if t.dim() and len(t) else t for t in trial.subject.values]
    v = [torch.full((), 1.25, dtype=t.dtype, device=t.device).expand_as(t) for t in trial.v]
    return _same_as_contiguous(trial, values, v)


def _same_as_contiguous(trial: Trial, values: Sequence[Tensor], v: Sequence[Tensor]) -> Found:
    subject = trial.subject
    if trial.random:
        raise Skip("what it draws at random depends on the layout, too")
    plain = subject.leaves([t.contiguous() for t in values])
    try:
        expected = gradients(subject.run(plain), plain, [t.contiguous() for t in v])
    except Exception as error:  # a matrix whose rows are all the same has no inverse, say
        raise Skip(f"it does not take these numbers side by side either: {told(error)}") from None
    leaves = [t.detach().requires_grad_() for t in values]
    try:
        # As they are: a copy would lie side by side again.
        outputs = tuple(t for t in subject(leaves) if t.requires_grad)
        got = gradients(outputs, leaves, v)
    except RuntimeError as error:
        if any(word in str(error) for word in ("in-place", "inplace", "written-to tensor")):
            raise Skip("it writes to its input, which must be neither a leaf nor expanded") from None
        return Finding(f"it raises {told(error)} (a .view where .reshape would do?)")
    for name, one, other in zip(subject.names, got, expected, strict=True):
        if other is not None and (one is None or not trial.close(one, other)):
            gap = float("inf") if one is None else difference(one, other)
            return Finding(f"∂C/∂{name} differs from that of the same numbers side by side by {gap:.3g}")
    return None


def zero_size(trial: Trial) -> Found:
    """No samples at all: gradients of the right shapes, and 0 for what no sample reached."""
    subject = trial.subject
    changed, values = _of_rows(trial, lambda t: t[:0])
    leaves, outputs = _forward(changed, values)
    if any(not t.isfinite().all() for t in outputs):
        raise Skip("f of no samples is not finite (a mean over none?)")
    try:
        got = gradients(outputs, leaves, [torch.ones_like(t) for t in outputs])
    except Exception as error:
        return Finding(f"backward of no samples raises {told(error)}")
    for name, gradient, x in zip(subject.names, got, values, strict=True):
        if gradient is not None and gradient.shape != x.shape:
            return Finding(f"∂C/∂{name} of no samples is {list(gradient.shape)}, expected {list(x.shape)}")
        if gradient is not None and not gradient.isfinite().all():
            return Finding(f"∂C/∂{name} of no samples is not finite, though f is")
    return None


def one_sample(trial: Trial) -> Found:
    """One row."""
    if (trial.subject.rows or 1) == 1:
        raise Skip("the inputs given are one sample")
    return _by_differences(trial, *_of_rows(trial, lambda t: t[:1]))


def one_dimension(trial: Trial) -> Found:
    """One sample without the axis of samples."""
    if not any(t.dim() >= 2 for t, b in zip(trial.subject.values, trial.subject.batched, strict=True) if b):
        raise Skip("the inputs given have one dimension")
    return _by_differences(trial, *_of_rows(trial, lambda t: t[0]))


def three_dimensions(trial: Trial) -> Found:
    """Samples along two axes."""
    if not any(t.dim() == 2 for t, b in zip(trial.subject.values, trial.subject.batched, strict=True) if b):
        raise Skip("the inputs given are not of two dimensions")
    return _by_differences(trial, *_of_rows(trial, lambda t: torch.stack([t, t.flip(0)])))


def _of_rows(trial: Trial, change: Callable[[Tensor], Tensor]) -> tuple[Subject, list[Tensor]]:
    """Return subject and values with those tensors changed that hold samples as rows; the others as they are.

    Raises:
        Skip: If none does.
    """
    subject = trial.subject
    if not any(subject.batched):
        raise Skip("no input holds samples as rows")
    if not subject.rows:
        raise Skip("the inputs given hold no samples")
    values = [change(t) if rows else t for t, rows in zip(subject.values, subject.batched, strict=True)]
    return subject.with_constants(change), values


def _forward(subject: Subject, values: Sequence[Tensor]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Return leaves and outputs.

    Raises:
        Skip: If forward does not take them.
    """
    leaves = subject.leaves(values)
    try:
        outputs = subject.run(leaves)
    except Exception as error:
        raise Skip(f"forward does not take it: {told(error)}") from None
    if not outputs:
        raise Skip("no output has a graph")
    return leaves, outputs


def _by_differences(trial: Trial, subject: Subject, values: Sequence[Tensor]) -> Found:
    """Compare with central differences on other inputs."""
    if trial.reference is not None:
        raise Skip("a reference is given: differences may be too coarse")
    leaves, outputs = _forward(subject, values)
    v = random_like(outputs, trial.generator)
    try:
        got = gradients(outputs, leaves, v)
    except Exception as error:
        return Finding(f"forward takes it, but backward raises {told(error)}")
    places = [k for k, t in enumerate(subject([t.clone() for t in leaves])) if t.requires_grad]

    def c(tensors: Sequence[Tensor]) -> Tensor:
        all_outputs = subject(tensors)
        return dot([all_outputs[k] for k in places], v).double()

    for i, (name, gradient) in enumerate(zip(subject.names, got, strict=True)):
        if gradient is None:
            continue
        found = slopes(c, list(values), i, 24, trial.generator)
        ours = gradient.reshape(-1)[found.entries].double()
        scale = max(1.0, float(found.central.abs().max())) if len(found.central) else 1.0
        allowed = trial.atol + trial.rtol * scale + 30 * found.noise
        low, high = torch.minimum(found.left, found.right), torch.maximum(found.left, found.right)
        wrong = ~((ours - found.central).abs() <= allowed) & ~((ours >= low - allowed) & (ours <= high + allowed))
        if wrong.any():
            k = int(torch.nonzero(wrong)[0])
            where = place(int(found.entries[k]), values[i].shape)
            return Finding(f"∂C/∂{name}: at {where} expected {found.central[k]:.8g}, got {ours[k]:.8g}")
    return None
