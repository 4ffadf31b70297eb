"""Use a device within autograd: the device computes the forward pass, estimator and surrogate the backward pass.

The forward pass calls `DeviceModule.device_product`, then the autograd function `_DeviceProduct`, then
`DeviceModule.run_forward`, which calls `Session.program` and `Session.query`. In the backward pass, `_DeviceProduct`
calls `DeviceModule.run_backward`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..common.errors import ConfigurationError
from ..devices import Device, Purpose, Session, derive_generator, initial_controls
from ..devices.checks import check_inputs
from ..estimators import Estimator
from ..probing.encoding import choose_encoding
from ..probing.probes import answer_variance
from ..surrogates import Surrogate
from .health import Health, saturated_share
from .methods import choose_method

__all__ = ["DeviceModule"]

# Number of vectors that measure the strength of the device's outputs.
_LEVEL_VECTORS = 16


class DeviceModule(nn.Module):
    """Compute X A(w)^T on a device, with gradients with respect to the inputs X and the controls w.

    `BlackBoxLinear` derives from this class, adds gain, bias and digital weights, and documents the arguments and
    attributes.

    Attributes:
        start_level: RMS of the outputs at the start, for inputs of RMS 1.
    """

    def __init__(
        self,
        device: Device,
        *,
        method: str = "auto",
        estimator: str | Estimator | None = None,
        surrogate: str | Surrogate | None = None,
        encoding: str = "auto",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.float64):
            raise ConfigurationError(f"dtype must be float32 or float64, not {dtype}")
        self.session = device if isinstance(device, Session) else Session(device)
        spec = self.session.spec
        self.in_features = spec.in_features
        self.out_features = spec.out_features
        self.use_method(method, estimator, surrogate, encoding=encoding, seed=seed, **options)
        self.saturation = 0.0
        self.resting = False
        self._noise_variance = answer_variance(spec)
        generator = derive_generator(seed, "layer")
        self.controls = nn.Parameter(initial_controls(spec, generator).to(dtype))
        self.session.open()
        self.start_level = self._start(generator)

    def use_method(
        self,
        method: str = "auto",
        estimator: str | Estimator | None = None,
        surrogate: str | Surrogate | None = None,
        *,
        encoding: str = "auto",
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Replace estimator, surrogate and encoding, and keep the parameters.

        The new surrogate measures the device in the next training step. The class describes the arguments.

        Raises:
            ConfigurationError: the method does not suit the device; nothing was changed.
        """
        spec = self.session.spec
        chosen_encoding = choose_encoding(spec, encoding)
        self.estimator, self.surrogate = choose_method(self.session, method, estimator, surrogate, seed=seed, **options)
        self.encoding = chosen_encoding
        self._health = Health(spec.name)
        self._surrogate_started = False
        self._surrogate_controls: Tensor | None = None  # controls of the surrogate's model; None if it must start

    # -- forward and backward -----------------------------------------------------------------

    def device_product(self, vectors: Tensor) -> Tensor:
        """Compute X A(w)^T on the device: (batch, in_features) -> (batch, out_features)."""
        inputs, factors = self.encoding.encode(vectors)
        self._clamp_controls()
        outputs: Tensor = _DeviceProduct.apply(inputs, self.controls, self, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
        return self.encoding.decode(outputs, factors)

    def run_forward(self, inputs: Tensor, controls: Tensor, *, tracked: bool, wants_inputs: bool) -> Tensor:
        """Program the controls, query the device, and update the surrogate.

        Args:
            inputs: (batch, in_features), in input units.
            controls: (num_controls,).
            tracked: whether a backward pass may follow.
            wants_inputs: whether the backward pass will need the gradient of the inputs.

        Returns:
            (batch, out_features), in output units.
        """
        session = self.session
        if not tracked:
            with session.purpose(Purpose.EVALUATION):
                return session.apply(controls, inputs)
        # In evaluation mode the surrogate must not learn, and the usage must not count as training.
        purpose = Purpose.FORWARD if self.training else Purpose.EVALUATION
        check_inputs(session.spec, inputs, "forward")  # before a program is spent
        with session.transaction():
            with session.purpose(purpose):
                session.program(controls)
            if wants_inputs and not self._surrogate_describes(controls) and not self._surrogate_stays():
                with session.purpose(Purpose.INPUTS):
                    if self._surrogate_controls is None:
                        self.surrogate.start(session, controls)
                        self._surrogate_started = True
                    else:
                        self.surrogate.controls_changed(session, controls)
                self._surrogate_controls = controls.clone()
            with session.purpose(purpose):
                outputs = session.query(inputs)
        if self.training:
            if wants_inputs and len(inputs):
                self.surrogate.observe(inputs, outputs)
            saturation = saturated_share(session, outputs)
            self.saturation = self.saturation if saturation is None else saturation
        return outputs

    def run_backward(
        self,
        inputs: Tensor,
        outputs: Tensor,
        controls: Tensor,
        grad_outputs: Tensor,
        *,
        wants_inputs: bool,
        wants_controls: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Estimate the gradients of the inputs and of the controls of one forward pass.

        Args:
            inputs: inputs of the forward pass, (batch, in_features).
            outputs: answer of the forward pass, (batch, out_features).
            controls: controls of the forward pass, (num_controls,).
            grad_outputs: d loss / d outputs, (batch, out_features).
            wants_inputs: whether the gradient of the inputs is needed.
            wants_controls: whether the gradient of the controls is needed.

        Returns:
            d loss / d inputs and d loss / d controls; None for a gradient that is not needed.
        """
        session = self.session
        grad_inputs = grad_controls = None
        wants_controls = wants_controls and not self.resting
        if not torch.isfinite(grad_outputs.sum()) and not bool(torch.isfinite(grad_outputs).all()):
            # After an overflow in mixed precision the gradient scaler skips this step, so nothing is spent on it.
            return (
                torch.full_like(inputs, torch.nan) if wants_inputs else None,
                torch.full_like(controls, torch.nan) if wants_controls else None,
            )
        with session.transaction(), torch.autocast(inputs.device.type, enabled=False):
            if wants_inputs and wants_controls:
                with session.purpose(Purpose.INPUTS):
                    session.program(controls)
                    self.surrogate.prepare(session, grad_outputs)
            if wants_controls:
                with session.purpose(Purpose.CONTROLS):
                    grad_controls = self.estimator.estimate(session, controls, inputs, outputs, grad_outputs)
                if self.estimator.transfer_matrix is not None:
                    self.surrogate.adopt(self.estimator.transfer_matrix)
            elif wants_inputs and not self._surrogate_stays():
                with session.purpose(Purpose.INPUTS):
                    self.surrogate.catch_up(session, controls, grad_outputs)
            if wants_inputs:
                self.surrogate.recall(inputs)
                grad_inputs = self.surrogate.vjp(grad_outputs)
                if self.training:
                    self._health.update(self.surrogate.explained(self._noise_variance))
        return grad_inputs, grad_controls

    # -- state ------------------------------------------------------------------------------

    @property
    def health(self) -> float | None:
        """Return the share of the device's answers that the surrogate predicted in the latest steps; see `Health`."""
        return self._health.value

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state of estimator and surrogate, and the serial number of their device."""
        return {
            "serial_number": self.session.spec.serial_number,
            "kinds": self._kinds(),
            "estimator": self.estimator.state_dict(),
            "surrogate": self.surrogate.state_dict() if self._surrogate_started else None,
            "known": self._surrogate_controls,
            "health": self._health.state_dict(),
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `get_extra_state` returned.

        The state of another chip or another method is ignored; then the surrogate starts again in the next step.
        """
        self._surrogate_controls = None
        state = copy.deepcopy(state)  # layers that load one state must not share its tensors
        if state["kinds"] == self._kinds() and state["serial_number"] == self.session.spec.serial_number:
            self.estimator.load_state_dict(state["estimator"])
            self._surrogate_started = state["surrogate"] is not None
            if self._surrogate_started:
                self.surrogate.load_state_dict(state["surrogate"])
            self._surrogate_controls = state["known"]
            self._health.load_state_dict(state["health"])

    def _kinds(self) -> list[str]:
        return [type(self.estimator).__name__, type(self.surrogate).__name__]

    @torch.no_grad()
    def _start(self, generator: torch.Generator) -> float:
        """Program the device, start the surrogate, and return the RMS of the outputs for inputs of RMS 1."""
        session, controls = self.session, self.controls.detach()
        bits = torch.randint(0, 2, (_LEVEL_VECTORS, self.in_features), generator=generator).to(controls)
        vectors = bits * 2 - 1 if self.encoding.signed else bits
        inputs, factors = self.encoding.encode(vectors)
        with session.purpose(Purpose.STARTUP), session.transaction():
            batches = (len(inputs), self.surrogate.startup_vectors(session))
            session.afford("startup", programs=1, batches=batches, first=controls)
            answers = self.encoding.decode(session.apply(controls, inputs), factors)
            self.surrogate.start(session, controls)
        self._surrogate_started = True
        self._surrogate_controls = controls.clone()
        level = float((answers.square().mean() / vectors.square().mean()).sqrt())
        return level if level > 0 else 1.0

    @torch.no_grad()
    def _clamp_controls(self) -> None:
        bounds = self.session.spec.control_range
        if bounds is not None:
            # Changed on .data, which autograd does not track. No graph exists yet for this step.
            self.controls.data.clamp_(*bounds)

    def _surrogate_describes(self, controls: Tensor) -> bool:
        known = self._surrogate_controls
        return known is not None and known.device == controls.device and torch.equal(known, controls.to(known.dtype))

    def _surrogate_stays(self) -> bool:
        # A resting layer spends nothing on its surrogate, unless the surrogate has not started or keeps no model.
        return self.resting and self._surrogate_controls is not None and not self.surrogate.queries_every_step


class _DeviceProduct(torch.autograd.Function):
    """Compute a product on the device of a module, and gradients by the estimator and the surrogate of the module."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, controls: Tensor, module: DeviceModule, tracked: bool) -> Tensor:
        ctx.module = module
        wants_inputs, *_ = ctx.needs_input_grad
        inputs, controls = inputs.detach(), controls.detach()
        outputs = module.run_forward(inputs, controls, tracked=tracked, wants_inputs=wants_inputs)
        ctx.save_for_backward(inputs, outputs, controls)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        module: DeviceModule = ctx.module
        inputs, outputs, controls = ctx.saved_tensors
        wants_inputs, wants_controls, *_ = ctx.needs_input_grad
        grads = module.run_backward(
            inputs, outputs, controls, grad_outputs, wants_inputs=wants_inputs, wants_controls=wants_controls
        )
        return (*grads, None, None)
