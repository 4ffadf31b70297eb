"""The torch layer that drives a device: forward through the hardware, backward around it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..common.errors import ConfigurationError
from ..devices import Device, DeviceSpec, ReportsPeaks, Session, derive_generator, initial_controls
from ..devices.checks import check_inputs
from ..estimators import Estimator
from ..probing.encoding import choose_encoding
from ..probing.probes import TransferProbe, answer_variance
from ..surrogates import Surrogate
from .fitting import fit_matrix
from .health import Health
from .methods import choose_method

__all__ = ["BlackBoxLinear", "check_layer"]

# Vectors spent on finding out how strong the device's outputs are.
_LEVEL_VECTORS = 16


class BlackBoxLinear(nn.Module):
    """A layer whose product is computed by a device: y = gain * f_w(x) + bias.

    Takes the place of an `nn.Linear`. The forward pass goes through the device. In the backward pass a
    surrogate gives d loss / d input, and an estimator operates the device for d loss / d controls; both end
    up in ``.grad``, for any torch optimizer. Controls that an optimizer has moved out of the device's range
    are put back at its edge in the next training step.

    Args:
        device: what computes. It is opened, programmed and asked for a few vectors on the way.
        bias: add a trainable bias to each output.
        gain: multiply by a trainable number, started where random inputs leave the layer as strong as they
            leave a freshly initialised `nn.Linear`; without it the outputs stay in device units.
        method: how gradients are found; see `astralora.nn.methods.METHODS`.
        estimator: takes the place of the method's, by name or as an object.
        surrogate: takes the place of the method's, by name or as an object.
        encoding: how activations are fitted into the input range; see `astralora.probing.encoding.ENCODINGS`.
        digital: a matrix whose entries other than zero stay digital, beside the device: y = gain * f_w(x) + D x + bias.
        seed: of everything random here.
        dtype: of the parameters, float32 or float64.
        **options: for the estimator and the surrogate, such as ``samples``, ``rank`` and ``step``.

    Shape:
        (..., in_features) -> (..., out_features).

    Attributes:
        session: the guarded device; its ``usage_by_purpose`` tells what the layer has spent.
        controls: (num_controls,), in control units.
        saturation: share of the newest outputs that were at an end of the output range.
        resting: while set, nothing is spent on gradients: the controls get none, and those of the inputs come from what
            the surrogate knows already.

    Raises:
        ConfigurationError: the method does not suit the device; nothing was spent.
    """

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
        super().__init__()
        if dtype not in (torch.float32, torch.float64):
            raise ConfigurationError(f"dtype must be float32 or float64, not {dtype}")
        self.session = device if isinstance(device, Session) else Session(device)
        spec = self.session.spec
        self.in_features = spec.in_features
        self.out_features = spec.out_features
        _check_digital(spec, digital)
        self.encoding = choose_encoding(spec, encoding)
        self.estimator, self.surrogate = choose_method(self.session, method, estimator, surrogate, seed=seed, **options)
        self.saturation = 0.0
        self.resting = False
        self._health = Health(spec.name)
        self._noise_variance = answer_variance(spec)
        generator = derive_generator(seed, "layer")
        self.controls = nn.Parameter(initial_controls(self.session.spec, generator).to(dtype))
        self.session.open()
        self._known: Tensor | None = None  # the controls that the surrogate knows
        level = self._start(generator)
        # What nn.Linear's default initialisation gives for inputs of +-1: entries of variance 1 / (3 n).
        self.gain = nn.Parameter(torch.tensor(sqrt(1 / 3) / level, dtype=dtype)) if gain else None
        self.bias = nn.Parameter(torch.zeros(self.out_features, dtype=dtype)) if bias else None
        self.fit_residual: float | None = None
        places = None if digital is None else digital.detach().nonzero().mT.contiguous()
        kept = None if digital is None or places is None else digital.detach()[places[0], places[1]].to(dtype)
        self.register_buffer("digital_places", places)
        self.digital = None if kept is None else nn.Parameter(kept)

    digital_places: Tensor | None
    """Rows and columns of the entries that are digital, (2, entries)."""

    def forward(self, x: Tensor) -> Tensor:
        """Pass activations through the device: (..., in_features) -> (..., out_features)."""
        # A compiled model breaks its graph here, once: hardware cannot be traced.
        return _outside_of_graphs(self, x) if torch.compiler.is_compiling() else self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != (self.in_features,):
            raise ConfigurationError(
                f"the layer on {self.session.spec.name!r} takes (..., {self.in_features}), "
                f"but was given {tuple(x.shape)}"
            )
        kind = x.device.type
        mixed = torch.is_autocast_enabled(kind) and x.dtype != torch.float64  # which autocast leaves alone
        if x.dtype != self.controls.dtype and not mixed:
            raise ConfigurationError(
                f"the layer on {self.session.spec.name!r} is {self.controls.dtype}, but was given {x.dtype}; "
                f"convert one to the other, or use autocast"
            )
        with torch.autocast(kind, enabled=False):
            vectors = x.reshape(-1, self.in_features).to(self.controls.dtype)
            y = self._product(vectors)
            if self.gain is not None:
                y = y * self.gain
            if self.digital is not None:
                y = y + torch.sparse.mm(self._digital_matrix(), vectors.mT).mT
            if self.bias is not None:
                y = y + self.bias
        return y.to(torch.get_autocast_dtype(kind) if mixed else x.dtype).view(*x.shape[:-1], self.out_features)

    def fit(self, weight: Tensor, steps: int = 100) -> float:
        """Move controls and gain to where the device comes nearest to a matrix; see `astralora.nn.fitting.fit_matrix`.

        Args:
            weight: W, (out_features, in_features); what is digital is taken off it first.
            steps: of the descent, on devices that are not elementwise.

        Returns:
            What is left, |gain A + D - W| / |W|, as measured; also in ``fit_residual``.
        """
        weight = weight.detach().to(self.controls)
        rest = weight if self.digital is None else weight - self._digital_matrix().detach().to_dense()
        found = fit_matrix(self.session, rest, self.controls, self._product, gain=self.gain is not None, steps=steps)
        with torch.no_grad():
            self.controls.copy_(found.controls)
            self.controls.grad = None
            if self.gain is not None:
                self.gain.fill_(found.gain)
        self._known = None  # the surrogate gets to know the device anew
        self.fit_residual = found.residual * float(rest.norm() / weight.norm().clamp_min(1e-30))
        return self.fit_residual

    def measure_weight(self, repeats: int = 1) -> Tensor:
        """Measure what the layer multiplies by at present, gain and digital part included.

        Args:
            repeats: times that each vector is sent: the error falls with the root of it.

        Returns:
            (out_features, in_features).

        Raises:
            ConfigurationError: the device is not linear, and multiplies by nothing.
        """
        self._project()
        session, controls = self.session, self.controls.detach()
        probe = TransferProbe(session.spec, controls.dtype, controls.device, repeats=repeats)
        with torch.no_grad(), session.purpose("measure"), session.transaction():
            session.program(controls)
            matrix = probe.matrix(probe.ask(session))
            if self.gain is not None:
                matrix = matrix * self.gain
            return matrix if self.digital is None else matrix + self._digital_matrix().to_dense()

    def to_digital(self, repeats: int = 1) -> nn.Module:
        """A digital layer that computes what this one does, from what `measure_weight` finds."""
        linear = nn.utils.skip_init(
            nn.Linear,
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            dtype=self.controls.dtype,
            device=self.controls.device,
        )
        return self._hand_over(linear, self.measure_weight(repeats))

    def _hand_over(self, digital: nn.Linear | nn.Conv2d, weight: Tensor) -> nn.Module:
        with torch.no_grad():
            digital.weight.copy_(weight.view_as(digital.weight)).requires_grad_(self.controls.requires_grad)
            if self.bias is not None and digital.bias is not None:
                digital.bias.copy_(self.bias).requires_grad_(self.bias.requires_grad)
        return digital.train(self.training)

    def extra_repr(self) -> str:
        """What stands in the brackets of the layer's repr."""
        spec = self.session.spec
        return (
            f"{spec.name!r}, in_features={self.in_features}, out_features={self.out_features}, "
            f"controls={spec.num_controls}, estimator={type(self.estimator).__name__}, "
            f"surrogate={type(self.surrogate).__name__}, bias={self.bias is not None}"
            + (f", digital={len(self.digital)}" if self.digital is not None else "")
        )

    @property
    def health(self) -> float | None:
        """Share of the device's answers, noise aside, that the surrogate foresees, over the latest steps."""
        return self._health.value

    # -- state ------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """What estimator and surrogate remember, and of which device."""
        return {
            "serial_number": self.session.spec.serial_number,
            "kinds": self._kinds(),
            "estimator": self.estimator.state_dict(),
            "surrogate": self.surrogate.state_dict(),
            "known": self._known,
            "health": self._health.state_dict(),
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `get_extra_state` returned.

        What was learned of another chip, or by another method, is of no use here: then the surrogate gets
        to know this device anew at the next training step.
        """
        self._known = None
        state = copy.deepcopy(state)  # a checkpoint that is loaded twice must not learn from the first
        if state["kinds"] == self._kinds() and state["serial_number"] == self.session.spec.serial_number:
            self.estimator.load_state_dict(state["estimator"])
            self.surrogate.load_state_dict(state["surrogate"])
            self._known = state["known"]
            self._health.load_state_dict(state["health"])

    def _kinds(self) -> list[str]:
        return [type(self.estimator).__name__, type(self.surrogate).__name__]

    # -- parts of the product -------------------------------------------------------------

    def _product(self, vectors: Tensor) -> Tensor:
        """X A(w)^T through the device: (batch, in_features) -> (batch, out_features)."""
        inputs, factors = self.encoding.encode(vectors)
        self._project()
        outputs: Tensor = _Through.apply(inputs, self.controls, self, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
        return self.encoding.decode(outputs, factors)

    def _digital_matrix(self) -> Tensor:
        assert self.digital is not None
        assert self.digital_places is not None
        shape = (self.out_features, self.in_features)
        return torch.sparse_coo_tensor(self.digital_places, self.digital, shape, check_invariants=False)

    # -- driving the device -----------------------------------------------------------------

    @torch.no_grad()
    def _start(self, generator: torch.Generator) -> float:
        """Meet the device; returns the root mean square of its answers to inputs of root mean square 1."""
        session, controls = self.session, self.controls.detach()
        bits = torch.randint(0, 2, (_LEVEL_VECTORS, self.in_features), generator=generator).to(controls)
        vectors = bits * 2 - 1 if self.encoding.signed else bits
        inputs, factors = self.encoding.encode(vectors)
        with session.purpose("startup"), session.transaction():
            batches = (len(inputs), self.surrogate.startup_vectors(session))
            session.afford("startup", programs=1, batches=batches, first=controls)
            answers = self.encoding.decode(session.apply(controls, inputs), factors)
            self.surrogate.start(session, controls)
        self._known = controls.clone()
        level = float((answers.square().mean() / vectors.square().mean()).sqrt())
        return level if level > 0 else 1.0

    @torch.no_grad()
    def _project(self) -> None:
        bounds = self.session.spec.control_range
        if bounds is not None:
            # On .data: no autograd graph is to notice, and none exists yet for this step.
            self.controls.data.clamp_(*bounds)

    def _tracked_forward(self, inputs: Tensor, controls: Tensor, wants_inputs: bool) -> Tensor:
        """A forward pass that a backward pass may follow."""
        session = self.session
        # An evaluation must not teach the surrogate anything, nor be booked as training.
        booked = "forward" if self.training else "evaluation"
        check_inputs(session.spec, inputs, "forward")  # before the program is paid for
        with session.transaction():
            with session.purpose(booked):
                session.program(controls)
            if wants_inputs and not self._knows(controls) and not self._rests():
                with session.purpose("inputs"):
                    if self._known is None:
                        self.surrogate.start(session, controls)
                    else:
                        self.surrogate.controls_changed(session, controls)
                self._known = controls.clone()
            with session.purpose(booked):
                outputs = session.query(inputs)
        if self.training:
            if wants_inputs and len(inputs):
                self.surrogate.observe(inputs, outputs)
            self._watch(outputs)
        return outputs

    def _rests(self) -> bool:
        # A surrogate that does not know the device yet has to meet it; one that knows nothing by heart has to ask.
        return self.resting and self._known is not None and not self.surrogate.asks_every_time

    def _knows(self, controls: Tensor) -> bool:
        known = self._known
        return known is not None and known.device == controls.device and torch.equal(known, controls.to(known.dtype))

    def _evaluate(self, inputs: Tensor, controls: Tensor) -> Tensor:
        with self.session.purpose("evaluation"):
            return self.session.apply(controls, inputs)

    def _backward(
        self,
        inputs: Tensor,
        outputs: Tensor,
        controls: Tensor,
        grad_outputs: Tensor,
        wants_inputs: bool,
        wants_controls: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        session = self.session
        grad_inputs = grad_controls = None
        wants_controls = wants_controls and not self.resting
        if not torch.isfinite(grad_outputs.sum()) and not bool(torch.isfinite(grad_outputs).all()):
            # An overflow under mixed precision: the scaler is going to skip this step, so nothing is spent on it.
            return (
                torch.full_like(inputs, torch.nan) if wants_inputs else None,
                torch.full_like(controls, torch.nan) if wants_controls else None,
            )
        with session.transaction(), torch.autocast(inputs.device.type, enabled=False):
            if wants_inputs and wants_controls:
                with session.purpose("inputs"):
                    session.program(controls)
                    self.surrogate.prepare(session, grad_outputs)
            if wants_controls:
                with session.purpose("controls"):
                    grad_controls = self.estimator.estimate(session, controls, inputs, outputs, grad_outputs)
                if self.estimator.transfer_matrix is not None:
                    self.surrogate.adopt(self.estimator.transfer_matrix)
            elif wants_inputs and not self._rests():
                with session.purpose("inputs"):
                    self.surrogate.catch_up(session, controls, grad_outputs)
            if wants_inputs:
                self.surrogate.recall(inputs)
                grad_inputs = self.surrogate.vjp(grad_outputs)
                if self.training:
                    self._health.update(self.surrogate.explained(self._noise_variance))
        return grad_inputs, grad_controls

    def _watch(self, outputs: Tensor) -> None:
        spec, source = self.session.spec, self.session.capability(ReportsPeaks)
        if source is not None:
            self.saturation = float((source.peaks >= 1).to(outputs).mean()) if outputs.numel() else 0.0
        elif spec.rails and outputs.numel():
            margin = (spec.output_step or 0.0) / 2
            ends = [outputs >= rail - margin if rail > 0 else outputs <= rail + margin for rail in spec.rails]
            self.saturation = sum(float(end.sum()) for end in ends) / outputs.numel()


# Not `torch.compiler.disable`, which would import all of the compiler here and now.
_outside_of_graphs = torch._disable_dynamo(BlackBoxLinear._forward)  # type: ignore[attr-defined]


def check_layer(
    session: Session,
    *,
    method: str = "auto",
    estimator: str | Estimator | None = None,
    surrogate: str | Surrogate | None = None,
    encoding: str = "auto",
    gain: bool = True,  # noqa: ARG001
    digital: Tensor | None = None,
    **options: Any,
) -> None:
    """Refuse what `BlackBoxLinear` would refuse on this device, without touching it.

    Raises:
        ConfigurationError: says why, and what to use instead.
    """
    spec = session.spec
    choose_encoding(spec, encoding)
    choose_method(session, method, estimator, surrogate, **options)
    _check_digital(spec, digital)


def _check_digital(spec: DeviceSpec, digital: Tensor | None) -> None:
    if digital is not None and digital.shape != (spec.out_features, spec.in_features):
        raise ConfigurationError(
            f"the digital part must have shape {(spec.out_features, spec.in_features)}, but has {tuple(digital.shape)}"
        )


class _Through(torch.autograd.Function):
    """Forward through the device, backward around it."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, controls: Tensor, layer: BlackBoxLinear, tracked: bool) -> Tensor:
        ctx.layer = layer
        wants_inputs, *_ = ctx.needs_input_grad
        inputs, controls = inputs.detach(), controls.detach()
        if tracked:
            outputs = layer._tracked_forward(inputs, controls, wants_inputs)
        else:
            outputs = layer._evaluate(inputs, controls)
        ctx.save_for_backward(inputs, outputs, controls)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, outputs, controls = ctx.saved_tensors
        wants_inputs, wants_controls, *_ = ctx.needs_input_grad
        grads = ctx.layer._backward(inputs, outputs, controls, grad_outputs, wants_inputs, wants_controls)
        return (*grads, None, None)
