"""What each layer knows of the task: the accuracy of a linear classifier on what it gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.core.targets import Patterns
from lightning_compress.measurement.layer_outputs import LayerOutputs, batches_of, chosen_layers, mask_of, means_of

IGNORED = -100
_LABELS = ("labels", "label")
_STEPS = 500  # of L-BFGS at most; a probe takes a few dozen


class LinearProbe:
    """Multinomial logistic regression on standardized features, found exactly: no random start, no batches.

    The minimum of ``sum_i -log softmax(x_i W + b)[y_i] + ||W||^2 / (2 C)``, as scikit-learn's ``LogisticRegression``
    has it, by L-BFGS in float64.

    Args:
        features: ``[examples, features]``, of the training examples.
        labels: their classes, integers ``[examples]``.
        strength: ``C``; the smaller, the smaller the weights.

    Raises:
        ConfigurationError: shapes that do not fit, one class only, or a strength that is not above 0.
        CompressionError: a feature is NaN or infinite.

    Example:
        >>> features = torch.tensor([[0.0, 5.0], [1.0, 5.0], [8.0, 5.0], [9.0, 5.0]])
        >>> LinearProbe(features, torch.tensor([3, 3, 7, 7])).predict(torch.tensor([[2.0, 5.0], [7.0, 5.0]]))
        tensor([3, 7])
    """

    def __init__(self, features: Tensor, labels: Tensor, *, strength: float = 1.0) -> None:
        if features.dim() != 2 or labels.shape != features.shape[:1]:  # noqa: PLR2004
            raise ConfigurationError(
                f"features of shape {list(features.shape)}, labels of shape {list(labels.shape)}: write "
                "[examples, features] and [examples]."
            )
        if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not strength > 0:
            raise ConfigurationError(f"strength={strength!r}: write a number above 0.")
        if not bool(features.isfinite().all()):
            raise CompressionError("a feature is NaN or infinite: nothing can be learned from it.")
        self.classes, places = torch.unique(labels, return_inverse=True)
        if len(self.classes) < 2:  # noqa: PLR2004
            raise ConfigurationError("labels hold one class only: there is nothing to tell apart.")
        features = features.double()
        self.mean = features.mean(0)
        scale = features.std(0, correction=0)
        self.scale = torch.where(scale > self.mean.abs() * 1e-9, scale, 1.0)  # a constant feature stays zero
        self._fit(self._standardized(features), places, strength)

    def predict(self, features: Tensor) -> Tensor:
        """Classes, ``[examples]``."""
        logits = self._standardized(features.double()) @ self.weight + self.bias
        predicted: Tensor = self.classes[logits.argmax(1)]
        return predicted

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of right predictions."""
        return float((self.predict(features) == labels).double().mean())

    def _standardized(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def _fit(self, features: Tensor, places: Tensor, strength: float) -> None:
        features, places = features.detach().clone(), places.clone()  # those of inference mode have no gradients
        weight = features.new_zeros(features.shape[1], len(self.classes)).requires_grad_()
        bias = features.new_zeros(len(self.classes)).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=_STEPS,
            history_size=20,
            tolerance_grad=1e-7,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def objective() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(features @ weight + bias, places, reduction="sum")
            loss = (loss + weight.square().sum() / (2 * strength)) / len(features)
            loss.backward()
            return loss

        optimizer.step(objective)
        self.weight, self.bias = weight.detach(), bias.detach()


def probe_layers(
    model: nn.Module,
    train: Iterable[Any],
    held_out: Iterable[Any],
    *,
    layers: Patterns | None = None,
    strength: float = 1.0,
) -> dict[str, float]:
    """Train a linear classifier on what each layer gives, and see how often it is right on examples it has not seen.

    A probe per layer (Belinkov & Glass 2019, arXiv 1812.08951; Alain & Bengio 2016, arXiv 1610.01644): where accuracy
    falls behind that of the dense model's probe, compression has lost what the task needs. The model is in eval mode
    and stays as it is. Of tokens and of positions in an image the mean counts, padding left out where the batch has an
    ``attention_mask``.

    Args:
        model: any module.
        train: batches to learn from, as a loader gives them: mappings with ``labels`` (or ``label``), passed to the
            model without them, or pairs of inputs and labels. One class an example; those with -100 are left out. A few
            hundred examples are enough, more than features if possible.
        held_out: the same, of other examples, to judge by.
        layers: globs over names of modules; by default all with a weight.
        strength: of the classifier, see :class:`LinearProbe`.

    Returns:
        Accuracy by name, in the model's order; layers that the model does not call are missing.

    Raises:
        TargetError: a pattern matches nothing.
        ConfigurationError: no batch, no labels or not one class an example, or no layer was called.
        CompressionError: a layer gave NaN or infinity; names it.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        >>> labels = (inputs[:, 0] > 0).long()
        >>> accuracies = probe_layers(model, [(inputs[:30], labels[:30])], [(inputs[30:], labels[30:])])
        >>> list(accuracies)
        ['0', '2']
    """
    watched = chosen_layers(model, layers)
    learned, classes = _gather(model, watched, train, "train")
    judged, right = _gather(model, watched, held_out, "held_out")
    found = [name for name in watched if name in learned and name in judged]
    idle = [name for name in watched if name not in found]
    if not found or (layers is not None and idle):
        raise ConfigurationError(f"layers={layers!r}: {idle[0]} gives nothing an example: it is not called, or not so.")
    accuracies = {}
    for name in found:
        try:
            probe = LinearProbe(learned.pop(name), classes, strength=strength)
        except CompressionError as error:
            raise type(error)(f"layer {name}: {error}") from error
        accuracies[name] = probe.accuracy(judged.pop(name), right)
    return accuracies


def _gather(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any], argument: str
) -> tuple[dict[str, Tensor], Tensor]:
    """Each layer's rows for all examples, and the examples' labels."""
    features: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    with LayerOutputs(model, layers) as outputs:
        for batch in batches_of(batches, argument):
            inputs, target = _split(batch, argument)
            counted = target != IGNORED
            for name, given in outputs.of(inputs).items():
                rows = means_of(given[-1], mask_of(inputs, name)).cpu()
                if len(rows) == len(target):  # others, as of positions, are the same for all examples
                    features.setdefault(name, []).append(rows[counted].float())
            labels.append(target[counted])
    joined = torch.cat(labels)
    complete = {name: torch.cat(rows) for name, rows in features.items() if sum(map(len, rows)) == len(joined)}
    return complete, joined


def _split(batch: Any, argument: str) -> tuple[Any, Tensor]:
    inputs, labels = batch, None
    if isinstance(batch, Mapping):
        inputs = {name: entry for name, entry in batch.items() if name not in _LABELS}
        labels = next((batch[name] for name in _LABELS if name in batch), None)
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        inputs, labels = batch[0], batch[1]
    if not isinstance(labels, Tensor):
        raise ConfigurationError(
            f"{argument} has a batch of type {type(batch).__name__} without labels; give mappings with 'labels', or "
            "pairs (inputs, labels)."
        )
    if labels.is_floating_point() or labels.numel() != len(labels):
        raise ConfigurationError(
            f"{argument} has labels of shape {list(labels.shape)} and type {labels.dtype}: a probe needs one class, an "
            "integer, for each example."
        )
    return inputs, labels.flatten().cpu()
