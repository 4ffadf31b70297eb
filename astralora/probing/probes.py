"""Measure the answers of a linear device to probe vectors of any size and sign."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices import DeviceSpec, ReportsPeaks, Session, derive_generator
from .encoding import choose_encoding
from .hadamard import hadamard, hadamard_order, hadamard_transform

__all__ = ["LinearProbe", "TransferProbe", "answer_variance", "lit_probes", "orthogonal_probes"]

# Share of the detector's range that a probe should use; the rest is a margin for noise and the next change of controls.
_FILL = 0.7
# A saturated probe is sent again with half the amplitude; this is the largest number of attempts.
_ATTEMPTS = 8
_FAINTEST = 2.0**-_ATTEMPTS


def orthogonal_probes(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, float]:
    """Return probes V of full input power: rows of +-1 with V^T V = power I.

    The columns of V are columns of a Hadamard matrix of the next possible order; see `hadamard`. Each column has a
    random sign, which is always the same. Without these signs the mean of the entries would add up in one row and
    saturate the detector.

    Returns:
        Probes V, (order, count), and the power, which is the order.
    """
    order = hadamard_order(count)
    return (hadamard(order)[:, :count] * _column_signs(count)).to(dtype), float(order)


def lit_probes(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return probes X of zeros and ones, for inputs that cannot be negative; each input is 1 in half of the rows.

    X is (H + 1) / 2 for the columns of a Hadamard matrix that are orthogonal to the constant column, so no input is
    0 in all rows or 1 in all rows. Then (X^T X)^-1 = (4 / order) (I - 1 1^T / (count + 1)), and every entry of a
    transfer matrix has the same error. A common offset of all answers changes each entry by only 2 / (count + 1) of the
    offset.

    Returns:
        Probes X, (order, count).
    """
    order = hadamard_order(count + 1)
    signs = hadamard(order)
    signs = signs * signs[:, :1]
    return ((signs[:, 1 : count + 1] * _column_signs(count) + 1) / 2).to(dtype)


def _column_signs(count: int) -> Tensor:
    generator = derive_generator(count, "probe signs")
    return torch.randint(0, 2, (count,), generator=generator, dtype=torch.int8) * 2 - 1


def answer_variance(spec: DeviceSpec) -> float:
    """Return the variance of one output in one query: declared noise plus rounding to codes (step^2 / 12)."""
    return spec.noise_std**2 + (spec.output_step or 0.0) ** 2 / 12


class LinearProbe:
    """Measure V A^T on a linear device, for any input range and detector range.

    Each row is scaled to the input range. If the range has one sign only, positive and negative parts are sent
    separately. A row that saturates the detector is sent with a smaller amplitude. The answers are scaled back.

    Args:
        spec: spec of the device.
        rows: probes V, (count, in_features); with ``backward``, (count, out_features).
        backward: whether to send the rows through the reverse port of an `astralora.devices.Reciprocal` device, which
            measures V A.
        repeats: number of times that each row is sent; the answers are averaged.

    Attributes:
        amplitude: share of the input range that each row uses, (count, 1).
    """

    def __init__(self, spec: DeviceSpec, rows: Tensor, *, backward: bool = False, repeats: int = 1) -> None:
        if not spec.linear:
            raise ConfigurationError(f"probing needs a linear device, but {spec.name!r} does not claim to be linear")
        self._backward = backward
        self._repeats = repeats
        if backward:
            spec = spec.backward()
        self._spec = spec
        self._encoding = choose_encoding(spec)
        self.rows = rows
        self.amplitude = rows.new_ones(len(rows), 1)
        self._peaks = rows.new_zeros(len(rows))
        self._rails = spec.rails
        margin = (spec.output_step or 0.0) / 2
        self._full = min((1 - margin / abs(rail) for rail in self._rails), default=1.0) - 1e-6

    @property
    def vectors(self) -> int:
        """Return the number of vectors of one measurement."""
        return len(self.rows) * self._encoding.passes * self._repeats

    def ask(self, session: Session) -> Tensor:
        """Measure the answer at the present controls, and reduce the amplitude of probes that saturate.

        Returns:
            V A^T, (count, out_features).
        """
        answers, peaks = self._ask(session, slice(None))
        for _ in range(_ATTEMPTS):
            saturated = (peaks >= self._full).nonzero()[:, 0]
            if not len(saturated):
                break
            self.amplitude[saturated] /= 2
            answers[saturated], peaks[saturated] = self._ask(session, saturated)
        self._peaks = peaks
        return answers

    def ask_again(self, session: Session) -> Tensor:
        """Measure the answer again after a small change of the controls, with exactly the same probes."""
        return self._ask(session, slice(None))[0]

    def ask_each(self, session: Session, settings: Tensor) -> Tensor:
        """Measure the answers at several settings, with exactly the same probes as in the last measurement.

        Args:
            session: session of the device.
            settings: (settings, num_controls).

        Returns:
            (settings, count, out_features).
        """
        inputs, factors = self._encoding.encode(self.rows, self.amplitude)
        return self._encoding.decode(self._mean(session.query_each(settings, self._repeated(inputs))), factors)

    def row_variance(self) -> Tensor:
        """Return the variance of one output in the answer to each row, from declared noise and rounding, (count,)."""
        _, factors = self._encoding.encode(self.rows, self.amplitude)
        variance = self._encoding.passes * answer_variance(self._spec) / self._repeats
        return variance * factors[:, 0].square().reciprocal()

    def adapt(self) -> None:
        """Set the amplitude of each probe so that its next answer uses most of the detector's range."""
        if self._rails:
            change = _FILL / self._peaks.clamp_min(1e-6).unsqueeze(1)
            self.amplitude = (self.amplitude * change).clamp(_FAINTEST, 1.0)

    def _ask(self, session: Session, which: slice | Tensor) -> tuple[Tensor, Tensor]:
        inputs, factors = self._encoding.encode(self.rows[which], self.amplitude[which])
        inputs = self._repeated(inputs)
        outputs = session.query_adjoint(inputs) if self._backward else session.query(inputs)
        if not len(outputs):
            return self._encoding.decode(outputs, factors), outputs.new_zeros(0)
        source = session.capability(ReportsPeaks)
        outputs, passes = self._mean(outputs), outputs
        shares = outputs.new_zeros(len(outputs))
        if source is not None:
            shares = source.peaks.to(passes).view(self._repeats, -1).amax(dim=0)
        for rail in self._rails:
            shares = torch.maximum(shares, (outputs / rail).amax(dim=1))
        # Both parts of a split probe must stay within the range.
        peaks = shares.view(-1, len(factors)).amax(dim=0)
        return self._encoding.decode(outputs, factors), peaks

    def _repeated(self, inputs: Tensor) -> Tensor:
        return inputs if self._repeats == 1 else inputs.repeat(self._repeats, 1)

    def _mean(self, outputs: Tensor) -> Tensor:
        return outputs if self._repeats == 1 else outputs.unflatten(-2, (self._repeats, -1)).mean(dim=-3)


class TransferProbe(LinearProbe):
    """Measure the whole transfer matrix with about one vector for each input.

    Every probe uses all inputs at full power, so the error of an entry is the error of one output divided by the square
    root of the number of probes.

    Args:
        spec: spec of the device.
        dtype: dtype of the probes.
        device: torch device of the probes.
        repeats: number of times that each probe is sent; the answers are averaged.
    """

    def __init__(
        self,
        spec: DeviceSpec,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        repeats: int = 1,
    ) -> None:
        rows, self._power = orthogonal_probes(spec.in_features, dtype)
        super().__init__(spec, rows.to(device), repeats=repeats)
        self._signs = _column_signs(spec.in_features).to(self.rows)

    def entry_variance(self) -> float:
        """Return the noise variance of one entry, from the declared noise and the rounding of the outputs."""
        return float(self.row_variance().mean()) / self._power

    def matrix(self, answers: Tensor) -> Tensor:
        """Compute the transfer matrix from V A^T: (..., count, out_features) -> (..., out_features, in_features)."""
        width = self._spec.in_features
        return hadamard_transform(answers.mT)[..., :width] * (self._signs / self._power)
