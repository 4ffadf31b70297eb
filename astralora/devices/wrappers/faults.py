"""Inject seeded faults of links and chips, and count them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from typing import Annotated, ClassVar, Final, Literal, NoReturn, Self, get_args

import torch
from pydantic import ConfigDict, Field, ValidationError
from torch import Tensor

from ..capabilities import ProgramsMany, Reciprocal, Rehearses
from ..device import Device
from ..errors import DeviceError, DeviceTimeout, NotConnected, ProtocolError
from ..parsing import parse_toml, read_toml
from ..random import derive_seed
from ..validation import Described, Seed, first_problem, printable
from ..wrapper import LAW, DeviceWrapper

__all__ = ["CHIP_FAULTS", "LINK_FAULTS", "FaultDice", "FaultKind", "FaultPlan", "FaultyDevice"]

LinkFault = Literal["timeout", "truncated", "corrupt", "late", "disconnect"]
ChipFault = Literal["nan", "saturated", "stuck"]
FaultKind = Literal[LinkFault, ChipFault]

LINK_FAULTS: Final[tuple[FaultKind, ...]] = get_args(LinkFault)
"""Faults of the link between host and chip; a driver always detects them."""

CHIP_FAULTS: Final[tuple[FaultKind, ...]] = get_args(ChipFault)
"""Faults of the chip, which change answers to queries; a driver cannot detect all of them."""

_Probability = Annotated[float, Field(ge=0, le=1)]


class FaultPlan(Described):
    """Set the probability of each fault for one operation.

    Attributes:
        timeout: the request or its answer is lost.
        truncated: the end of the answer is missing.
        corrupt: bits of the request or of its answer are flipped.
        late: the answer arrives after the timeout.
        disconnect: the link is closed, and must be opened again.
        nan: a value of the answer is NaN.
        saturated: an output is at the end of its range.
        stuck: an output repeats its previous value.
        seed: seed of the random choice.
        at: fault of each listed operation, by the number of the operation from 0; replaces the random choice.
        flagged: whether the chip detects ``saturated`` and ``stuck`` by a self-test and reports an error; otherwise it
            returns wrong numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout: _Probability = 0.0
    truncated: _Probability = 0.0
    corrupt: _Probability = 0.0
    late: _Probability = 0.0
    disconnect: _Probability = 0.0
    nan: _Probability = 0.0
    saturated: _Probability = 0.0
    stuck: _Probability = 0.0
    seed: Seed = 0
    at: dict[Annotated[int, Field(ge=0)], FaultKind] = Field(default_factory=dict)
    flagged: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a plan from a TOML file or text such as ``timeout=0.01,nan=0.01,seed=3``; ``all=P`` sets all faults.

        Raises:
            DeviceError: the text is neither a readable file nor a valid plan.
        """
        shown = printable(text)
        if text.endswith(".toml"):
            values = read_toml(text, "the fault plan")
        else:
            try:
                values = parse_toml("\n".join(text.split(",")), shown)
            except DeviceError:
                raise DeviceError(
                    f"{shown!r} is not a fault plan; write, for example, timeout=0.01,nan=0.01,seed=3, or name a TOML "
                    f"file"
                ) from None
        if "all" in values:
            values = dict.fromkeys(LINK_FAULTS + CHIP_FAULTS, values.pop("all")) | values
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise DeviceError(f"fault plan {shown!r}: {first_problem(error, [*cls.model_fields, 'all'])}") from None


class FaultDice:
    """Choose the fault of each operation at random.

    Args:
        plan: probability of each fault.
        kinds: kinds of faults to choose from.

    Attributes:
        injected: number of faults of each kind so far.
    """

    def __init__(self, plan: FaultPlan, kinds: Collection[FaultKind]) -> None:
        self._plan = plan
        self._kinds = kinds
        self._random = random.Random(derive_seed(plan.seed, "faults", *sorted(kinds)))
        self._number = 0
        self.injected: Counter[FaultKind] = Counter()

    def throw(self, possible: Collection[FaultKind]) -> FaultKind | None:
        """Choose the fault of the next operation; return None for no fault or a fault that is not possible."""
        number, drawn = self._number, self._random.random()
        self._number += 1
        kind = self._plan.at.get(number)
        for each in self._kinds if kind is None else ():
            drawn -= getattr(self._plan, each)
            if drawn < 0:
                kind = each
                break
        if kind is None or kind not in possible or kind not in self._kinds:
            return None
        self.injected[kind] += 1
        return kind

    def coin(self) -> bool:
        """Return True with probability one half."""
        return self._random.random() < 0.5

    def below(self, limit: int) -> int:
        """Return a random whole number from 0 to ``limit`` - 1."""
        return self._random.randrange(limit)


class FaultyDevice(DeviceWrapper):
    """Inject faults into a device, to test the code that uses it.

    Faults of the link raise the errors that a driver raises. Half of the lost requests have been carried out, as with
    real links. ``late`` and ``truncated`` answers raise a timeout, as in a correct driver. After a ``disconnect`` every
    call fails until the device is closed and opened. A ``nan`` answer is returned unchanged. ``saturated`` and
    ``stuck`` outputs are wrong numbers that look right; with ``flagged`` in the plan they raise an error instead. The
    clock, the state and the law of the device are forwarded unchanged.

    Args:
        device: device without faults.
        plan: probability of each fault.
        kinds: kinds of faults to inject.
    """

    adapts: ClassVar[tuple[type, ...]] = (ProgramsMany, Reciprocal)
    forwards: ClassVar[tuple[type, ...]] = (*DeviceWrapper.forwards, *LAW, Rehearses)

    def __init__(
        self, device: Device, plan: FaultPlan, kinds: Collection[FaultKind] = LINK_FAULTS + CHIP_FAULTS
    ) -> None:
        super().__init__(device)
        self._plan = plan
        self._dice = FaultDice(plan, kinds)
        self._disconnected = False
        self._paused = False
        self._previous: dict[str, Tensor] = {}

    @property
    def injected(self) -> Counter[FaultKind]:
        """Return the number of faults of each kind so far."""
        return self._dice.injected

    def open(self) -> None:
        """Connect, and end an injected disconnect."""
        self.device.open()
        self._disconnected = False

    def program(self, controls: Tensor) -> None:
        """Set all controls: shape (num_controls,), in control units."""
        self._require_link("program")
        kind = self._throw(LINK_FAULTS)
        self._before("program", kind)
        self.device.program(controls)
        self._after("program", kind)

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through the device: (batch, in_features) -> (batch, out_features)."""
        return self._answer("query", lambda: self.device.query(inputs))

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program one setting after the other, and pass the same vectors at each: (settings, batch, out_features).

        A call has at most one fault, for any number of settings.
        """
        many = self.behind(ProgramsMany)
        return self._answer("query_each", lambda: many.query_each(controls, inputs))

    def query_adjoint(self, outputs: Tensor) -> Tensor:
        """Pass vectors backwards through the device: (batch, out_features) -> (batch, in_features)."""
        reverse = self.behind(Reciprocal)
        return self._answer("query_adjoint", lambda: reverse.query_adjoint(outputs))

    @contextmanager
    def spared(self) -> Generator[None]:
        """Inject no faults, and draw no random numbers, within a ``with`` block."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _answer(self, operation: str, ask: Callable[[], Tensor]) -> Tensor:
        self._require_link(operation)
        kind = self._throw(LINK_FAULTS + CHIP_FAULTS)
        self._before(operation, kind)
        outputs = ask()
        self._after(operation, kind)
        return self._altered(operation, outputs.flatten(0, -2), kind).view(outputs.shape)

    def _throw(self, possible: Collection[FaultKind]) -> FaultKind | None:
        return None if self._paused else self._dice.throw(possible)

    def _require_link(self, operation: str) -> None:
        if self._disconnected:
            self._fail(NotConnected, operation, "the link was closed by the other end; close and open the device")

    def _before(self, operation: str, kind: FaultKind | None) -> None:
        """Raise the error of a fault that happens before the request is carried out."""
        if kind == "disconnect":
            self._disconnected = True
            self._require_link(operation)
        if kind in ("timeout", "corrupt") and self._dice.coin():
            self._after(operation, kind)

    def _after(self, operation: str, kind: FaultKind | None) -> None:
        """Raise the error of a fault that happens after the request was carried out."""
        if kind in ("timeout", "late"):
            self._fail(DeviceTimeout, operation, "no answer arrived in time")
        if kind == "truncated":
            self._fail(DeviceTimeout, operation, "the end of the answer did not arrive in time")
        if kind == "corrupt":
            self._fail(ProtocolError, operation, "the message arrived damaged")

    def _altered(self, operation: str, outputs: Tensor, kind: FaultKind | None) -> Tensor:
        # A stuck output repeats the previous answer of the same port.
        port = "reverse" if operation == "query_adjoint" else "forward"
        previous, self._previous[port] = self._previous.get(port), outputs[-1:].clone()
        if kind in ("saturated", "stuck") and self._plan.flagged:
            self._fail(ProtocolError, "query", f"the self-test found an output {kind}")
        if kind in CHIP_FAULTS and len(outputs):
            outputs = outputs.clone()
            column = self._dice.below(outputs.shape[1])
            if kind == "nan":
                outputs[self._dice.below(len(outputs)), column] = torch.nan
            elif kind == "saturated":
                bounds = self.spec.output_range
                outputs[:, column] = bounds[1] if bounds is not None else outputs.abs().max()
            elif previous is not None:
                outputs[:, column] = previous[0, column]
        return outputs

    def _fail(self, error: type[DeviceError], operation: str, message: str) -> NoReturn:
        raise error(f"{message} (an injected fault)", device=self.spec.name, operation=operation)
