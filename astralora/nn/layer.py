"""Compute the product of a linear layer on a device."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # torch.compiler.disable would import the whole compiler at once

from ..common.errors import ConfigurationError
from ..devices import Device, Purpose, Session
from ..estimators import Estimator
from ..probing.probes import TransferProbe
from ..surrogates import Surrogate
from .digital import check_digital
from .fitting import fit_matrix
from .module import DeviceModule

__all__ = ["BlackBoxLinear"]


class BlackBoxLinear(DeviceModule):
    """Compute y = gain * f_w(x) + bias, with f_w on a device; this layer replaces an `nn.Linear`.

    The forward pass queries the device. In the backward pass a surrogate computes d loss / d input, and an estimator
    operates the device to estimate d loss / d controls. Autograd stores both in ``.grad``, for any torch optimizer.
    Controls that an optimizer has moved out of the device's range are clamped to the range in the next training step.

    Args:
        device: device that computes. The layer opens it, programs it once, and sends it a few vectors.
        bias: whether to add a trainable bias to each output.
        gain: whether to multiply by a trainable number. Its first value gives outputs for random inputs the strength
            that a freshly initialised `nn.Linear` has. Without a gain the outputs stay in device units.
        method: name of the pair of estimator and surrogate; see `astralora.nn.methods.METHODS`.
        estimator: name or object that replaces the method's estimator.
        surrogate: name or object that replaces the method's surrogate.
        encoding: name of the map from activations to the input range; see `astralora.probing.encoding.ENCODINGS`.
        digital: matrix D whose nonzero entries are trained digitally: y = gain * f_w(x) + D x + bias.
        seed: seed of all random choices in the layer.
        dtype: dtype of the parameters, float32 or float64.
        **options: options of the estimator and the surrogate, such as ``samples``, ``rank`` and ``step``.

    Shape:
        (..., in_features) -> (..., out_features).

    Attributes:
        session: session of the device; its ``usage_by_purpose`` shows the operations of the layer.
        controls: trainable controls, (num_controls,), in control units.
        saturation: share of the newest outputs at an end of the output range.
        resting: whether to spend no operations on gradients. The controls then get no gradient, and the surrogate
            computes the gradient of the inputs without an update.

    Raises:
        ConfigurationError: the method does not suit the device; nothing was spent.
    """

    digital_places: Tensor | None
    """Rows and columns of the digital entries, (2, entries)."""

    def __init__(
        self,
        device: Device,
        *,
        bias: bool = True,
        gain: bool = True,
        method: str = "auto",
        estimator: str | Estimator | None = None,
        surrogate: str | Surrogate | None = None,
        encoding: str = "auto",
        digital: Tensor | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        session = device if isinstance(device, Session) else Session(device)
        check_digital(session.spec, digital)
        super().__init__(
            session,
            method=method,
            estimator=estimator,
            surrogate=surrogate,
            encoding=encoding,
            seed=seed,
            dtype=dtype,
            **options,
        )
        # The default initialisation of nn.Linear, entries of variance 1 / (3 n), gives this strength for inputs of +-1.
        self.gain = nn.Parameter(torch.tensor(sqrt(1 / 3) / self.start_level, dtype=dtype)) if gain else None
        self.bias = nn.Parameter(torch.zeros(self.out_features, dtype=dtype)) if bias else None
        self.fit_residual: float | None = None
        places = None if digital is None else digital.detach().nonzero().mT.contiguous()
        entries = None if digital is None or places is None else digital.detach()[places[0], places[1]].to(dtype)
        self.register_buffer("digital_places", places)
        self.digital = None if entries is None else nn.Parameter(entries)

    def forward(self, x: Tensor) -> Tensor:
        """Pass activations through the device: (..., in_features) -> (..., out_features)."""
        # Hardware cannot be traced, so a compiled model has one graph break here.
        return self._forward_outside_of_graphs(x) if torch.compiler.is_compiling() else self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != (self.in_features,):
            raise ConfigurationError(
                f"the input of the layer on {self.session.spec.name!r} must have shape (..., {self.in_features}), "
                f"but has {tuple(x.shape)}"
            )
        kind = x.device.type
        mixed = torch.is_autocast_enabled(kind) and x.dtype != torch.float64  # autocast does not convert float64
        if x.dtype != self.controls.dtype and not mixed:
            raise ConfigurationError(
                f"the layer on {self.session.spec.name!r} is {self.controls.dtype}, but its input is {x.dtype}; "
                f"convert one of them, or use autocast"
            )
        with torch.autocast(kind, enabled=False):
            vectors = x.reshape(-1, self.in_features).to(self.controls.dtype)
            y = self.device_product(vectors)
            if self.gain is not None:
                y = y * self.gain
            if self.digital is not None:
                y = y + torch.sparse.mm(self._digital_matrix(), vectors.mT).mT
            if self.bias is not None:
                y = y + self.bias
        return y.to(torch.get_autocast_dtype(kind) if mixed else x.dtype).view(*x.shape[:-1], self.out_features)

    _forward_outside_of_graphs = _disable_dynamo(_forward)

    # -- weights ----------------------------------------------------------------------------

    def fit(self, weight: Tensor, steps: int = 100) -> float:
        """Fit controls and gain to a matrix; see `astralora.nn.fitting.fit_matrix`.

        Args:
            weight: W, (out_features, in_features); the digital part is subtracted from it first.
            steps: number of descent steps, on devices that are not elementwise.

        Returns:
            Measured relative error |gain A + D - W| / |W|; also stored in ``fit_residual``.
        """
        weight = weight.detach().to(self.controls)
        rest = weight if self.digital is None else weight - self._digital_matrix().detach().to_dense()
        found = fit_matrix(
            self.session, rest, self.controls, self.device_product, gain=self.gain is not None, steps=steps
        )
        with torch.no_grad():
            self.controls.copy_(found.controls)
            self.controls.grad = None
            if self.gain is not None:
                self.gain.fill_(found.gain)
        self._surrogate_controls = None  # the surrogate must start again
        self.fit_residual = found.residual * float(rest.norm() / weight.norm().clamp_min(1e-30))
        return self.fit_residual

    def measure_weight(self, repeats: int = 1) -> Tensor:
        """Measure the present weight matrix of the layer, including gain and digital part.

        Args:
            repeats: number of times that each probe is sent; the error falls as 1 / sqrt(repeats).

        Returns:
            (out_features, in_features).

        Raises:
            ConfigurationError: the device is not linear, so it has no matrix.
        """
        self._clamp_controls()
        session, controls = self.session, self.controls.detach()
        probe = TransferProbe(session.spec, controls.dtype, controls.device, repeats=repeats)
        with torch.no_grad(), session.purpose(Purpose.MEASURE), session.transaction():
            session.program(controls)
            matrix = probe.matrix(probe.ask(session))
            if self.gain is not None:
                matrix = matrix * self.gain
            return matrix if self.digital is None else matrix + self._digital_matrix().to_dense()

    def to_digital(self, repeats: int = 1) -> nn.Module:
        """Return a digital layer that computes the same, with the weights that `measure_weight` measures."""
        linear = nn.utils.skip_init(
            nn.Linear,
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            dtype=self.controls.dtype,
            device=self.controls.device,
        )
        return self._copy_into(linear, self.measure_weight(repeats))

    def _copy_into(self, digital: nn.Linear | nn.Conv2d, weight: Tensor) -> nn.Module:
        with torch.no_grad():
            digital.weight.copy_(weight.view_as(digital.weight)).requires_grad_(self.controls.requires_grad)
            if self.bias is not None and digital.bias is not None:
                digital.bias.copy_(self.bias).requires_grad_(self.bias.requires_grad)
        return digital.train(self.training)

    def _digital_matrix(self) -> Tensor:
        assert self.digital is not None
        assert self.digital_places is not None
        shape = (self.out_features, self.in_features)
        return torch.sparse_coo_tensor(self.digital_places, self.digital, shape, check_invariants=False)

    def extra_repr(self) -> str:
        """Return the text in the brackets of the layer's repr."""
        spec = self.session.spec
        return (
            f"{spec.name!r}, in_features={self.in_features}, out_features={self.out_features}, "
            f"controls={spec.num_controls}, estimator={type(self.estimator).__name__}, "
            f"surrogate={type(self.surrogate).__name__}, bias={self.bias is not None}"
            + (f", digital={len(self.digital)}" if self.digital is not None else "")
        )
