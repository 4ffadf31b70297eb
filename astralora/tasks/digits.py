"""Classify handwritten digits from the data set that scikit-learn contains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..common.errors import ConfigurationError
from ..devices import derive_seed
from .base import Splits, Task

__all__ = ["Digits"]

_POOLED = 16  # the 8 x 8 image after one 2 x 2 pooling


class Digits(Task):
    """Classify the 1,797 handwritten digits of 8 x 8 pixels in scikit-learn (UCI, Alpaydin and Kaynak 1998).

    The model has a convolution, a normalisation, the device layer, and a linear classifier. A fifth of the data is held
    out for testing, the same samples for every seed. Activations are normalised before the device, since its converters
    work best with inputs of zero mean.
    """

    device_layers: tuple[str, ...] = ("classifier.1",)

    def __init__(self, in_features: int = 256, out_features: int = 128) -> None:
        super().__init__(in_features, out_features)
        if in_features % _POOLED:
            raise ConfigurationError(
                f"task 'digits' needs in_features to be a multiple of {_POOLED}, and {in_features} is not"
            )

    def splits(self) -> Splits:
        """Return 1,437 training and 360 test images, (samples, 1, 8, 8) in 0..1, stratified by digit."""
        # Import scikit-learn only here, since that takes longer than to import astralora.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        parts = train_test_split(
            digits.images / 16.0, digits.target, test_size=0.2, stratify=digits.target, random_state=0
        )
        train_inputs, test_inputs = (torch.tensor(part, dtype=torch.float32).unsqueeze(1) for part in parts[:2])
        train_targets, test_targets = (torch.tensor(part, dtype=torch.long) for part in parts[2:])
        return Splits(train_inputs, train_targets, test_inputs, test_targets)

    def model(self, seed: int) -> nn.Module:
        """Return the features and the classifier, which contains the device layer."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "model"))
            features, classifier = self.features(), self.classifier()
        model = nn.Sequential()
        model.add_module("features", features)
        model.add_module("classifier", classifier)
        return model

    def features(self) -> nn.Sequential:
        """Return convolution, pooling and normalisation, with in_features outputs per image."""
        filters = self.in_features // _POOLED
        return nn.Sequential(
            nn.Conv2d(1, 4 * filters, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4 * filters, filters, 1),
            nn.BatchNorm2d(filters),
        )

    def classifier(self) -> nn.Sequential:
        """Return the layers from the features to ten logits."""
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(self.in_features, self.out_features),
            nn.ReLU(),
            nn.Linear(self.out_features, 10),
        )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy with labels smoothed by 0.1, since a model soon memorises 1,437 images."""
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)

    def correct(self, outputs: Tensor, targets: Tensor) -> int:
        """Return the number of digits whose most likely class is right."""
        return int((outputs.argmax(dim=1) == targets).sum())


class DeepDigits(Digits):
    """Classify the digits through two device layers in sequence.

    A layer normalisation after each removes the mean over the outputs of an image. This mean dominates on chips whose
    weights mostly have one sign. Tanh gives the second device inputs of zero mean.
    """

    device_layers = ("classifier.1", "classifier.4")

    def classifier(self) -> nn.Sequential:
        """Return the layers from the features to ten logits, with two hidden layers."""
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(self.in_features, self.out_features),
            nn.LayerNorm(self.out_features),
            nn.Tanh(),
            nn.Linear(self.out_features, self.out_features),
            nn.LayerNorm(self.out_features),
            nn.ReLU(),
            nn.Linear(self.out_features, 10),
        )


class ConvDigits(Digits):
    """Classify the digits through a convolution on a device, with 16 times as many vectors as images."""

    device_layers = ("features.4",)

    def features(self) -> nn.Sequential:
        """Return a small digital convolution, followed by the device layer."""
        filters = self.in_features // _POOLED
        return nn.Sequential(
            nn.Conv2d(1, filters, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(filters),
            nn.Conv2d(filters, filters, 3, padding=1),
            nn.ReLU(),
        )
