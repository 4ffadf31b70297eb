"""Faults on purpose: what goes wrong on a bench, seeded and counted."""

from __future__ import annotations

import random
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal, Self, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..device import Device, ProgramsMany
from ..errors import DeviceError, DeviceTimeout, NotConnected, ProtocolError
from ..random import derive_seed
from ..spec import DeviceSpec

__all__ = ["CHIP_FAULTS", "LINK_FAULTS", "FaultDice", "FaultKind", "FaultPlan", "FaultyDevice"]

LinkFault = Literal["timeout", "truncated", "corrupt", "late", "disconnect"]
ChipFault = Literal["nan", "saturated", "stuck"]
FaultKind = Literal[LinkFault, ChipFault]

LINK_FAULTS: Final[tuple[FaultKind, ...]] = get_args(LinkFault)
"""Of the line between host and chip: always noticed."""

CHIP_FAULTS: Final[tuple[FaultKind, ...]] = get_args(ChipFault)
"""Of the chip itself, on queries: noticed where the answer shows it, or the chip says so."""

_Probability = Annotated[float, Field(ge=0, le=1)]


class FaultPlan(BaseModel):
    """How often which fault happens, per operation.

    Attributes:
        timeout: the request or its answer is lost.
        truncated: the answer breaks off.
        corrupt: bits of the request or of its answer are flipped.
        late: the answer comes after its time.
        disconnect: the line hangs up, and has to be opened again.
        nan: a value of the answer is NaN.
        saturated: an output sits at the end of its range.
        stuck: an output shows what it showed the time before.
        seed: of the drawing.
        at: faults of certain operations, by their number from 0, whatever is drawn.
        flagged: the chip notices ``saturated`` and ``stuck`` by itself and reports an error, as one with a
            self-test does; otherwise wrong numbers are answered, as by one without.
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
    seed: Annotated[int, Field(ge=0)] = 0
    at: dict[int, FaultKind] = {}
    flagged: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """A plan from a TOML file, or from words such as ``timeout=0.01,nan=0.01,seed=3``; ``all=P`` means every fault.

        Raises:
            DeviceError: it is neither, in one sentence.
        """
        try:
            if text.endswith(".toml"):
                values = tomllib.loads(Path(text).read_text(encoding="utf-8"))
            else:
                values = tomllib.loads("\n".join(text.split(",")))
            if "all" in values:
                values = dict.fromkeys(LINK_FAULTS + CHIP_FAULTS, values.pop("all")) | values
            return cls.model_validate(values)
        except OSError as error:
            raise DeviceError(f"the fault plan {text} cannot be read: {error.strerror or error}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError):
            raise DeviceError(
                f"{text!r} is no fault plan; write, for example, timeout=0.01,nan=0.01,seed=3, or name a TOML file"
            ) from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            known = f"; known are {', '.join(cls.model_fields)}, all" if first["type"] == "extra_forbidden" else ""
            raise DeviceError(f"fault plan {text!r}: {place}: {first['msg']}{known}") from None


class FaultDice:
    """Decides the fault of each operation.

    Args:
        plan: how often which.
        kinds: those that are thrown for here; the plan's others are somebody else's.

    Attributes:
        injected: how many of each kind there were.
    """

    def __init__(self, plan: FaultPlan, kinds: Collection[FaultKind]) -> None:
        self._plan = plan
        self._kinds = kinds
        self._random = random.Random(derive_seed(plan.seed, "faults", *sorted(kinds)))
        self._number = 0
        self.injected: Counter[FaultKind] = Counter()

    def throw(self, possible: Collection[FaultKind]) -> FaultKind | None:
        """The next operation's fault, or None, among those that are possible for it."""
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
        """Heads or tails."""
        return self._random.random() < 0.5

    def below(self, limit: int) -> int:
        """A whole number from 0 up to, not including, ``limit``."""
        return self._random.randrange(limit)


class FaultyDevice:
    """A device with faults on purpose, for testing what stands in front of it.

    Faults of the link raise what a driver raises when it meets them; half of the requests that are lost have been
    carried out, as in life. ``late`` and ``truncated`` answers are timeouts to a driver that does its work. After a
    ``disconnect`` every call fails until the device is closed and opened. ``nan`` is answered as it is;
    ``saturated`` and ``stuck`` are wrong numbers that nothing tells from right ones, unless the plan has them
    ``flagged``.

    Args:
        device: the good device.
        plan: how often which fault.
        kinds: only these of the plan.

    Attributes:
        device: as given.
    """

    def __new__(cls, device: Device, *_: object, **__: object) -> Self:
        """One that `ProgramsMany` for a device that does: a fault in a call of many is one fault."""
        many = cls is FaultyDevice and isinstance(device, ProgramsMany)
        return object.__new__(_FaultyManyDevice if many else cls)  # type: ignore[return-value]

    def __init__(
        self, device: Device, plan: FaultPlan, kinds: Collection[FaultKind] = LINK_FAULTS + CHIP_FAULTS
    ) -> None:
        self.device = device
        self._plan = plan
        self._dice = FaultDice(plan, kinds)
        self._gone = False
        self._spared = False
        self._before: Tensor | None = None

    @property
    def spec(self) -> DeviceSpec:
        """What the good device promises."""
        return self.device.spec

    @property
    def injected(self) -> Counter[FaultKind]:
        """How many faults of each kind there were."""
        return self._dice.injected

    def open(self) -> None:
        """Connect, also after a disconnect."""
        self.device.open()
        self._gone = False

    def close(self) -> None:
        """Disconnect."""
        self.device.close()

    def program(self, controls: Tensor) -> None:
        """Set all controls: shape (num_controls,), in control units."""
        self._require_line("program")
        kind = self._throw(LINK_FAULTS)
        self._on_the_way("program", kind)
        self.device.program(controls)
        self._on_the_way_back("program", kind)

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through: (batch, in_features) -> (batch, out_features)."""
        return self._asked("query", lambda: self.device.query(inputs))

    def _asked(self, operation: str, ask: Callable[[], Tensor]) -> Tensor:
        self._require_line(operation)
        kind = self._throw(LINK_FAULTS + CHIP_FAULTS)
        self._on_the_way(operation, kind)
        outputs = ask()
        self._on_the_way_back(operation, kind)
        return self._altered(outputs.flatten(0, -2), kind).view(outputs.shape)

    @contextmanager
    def spared(self) -> Generator[None]:
        """Within this block all goes well, and nothing is drawn."""
        self._spared = True
        try:
            yield
        finally:
            self._spared = False

    def _throw(self, possible: Collection[FaultKind]) -> FaultKind | None:
        return None if self._spared else self._dice.throw(possible)

    def _require_line(self, operation: str) -> None:
        if self._gone:
            self._fail(NotConnected, operation, "the line has hung up; close and open the device")

    def _on_the_way(self, operation: str, kind: FaultKind | None) -> None:
        if kind == "disconnect":
            self._gone = True
            self._require_line(operation)
        if kind in ("timeout", "corrupt") and self._dice.coin():
            self._on_the_way_back(operation, kind)

    def _on_the_way_back(self, operation: str, kind: FaultKind | None) -> None:
        if kind in ("timeout", "late"):
            self._fail(DeviceTimeout, operation, "no answer arrived in time")
        if kind == "truncated":
            self._fail(DeviceTimeout, operation, "the answer broke off")
        if kind == "corrupt":
            self._fail(ProtocolError, operation, "the message arrived damaged")

    def _altered(self, outputs: Tensor, kind: FaultKind | None) -> Tensor:
        newest, self._before = self._before, outputs[-1:].clone()
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
            elif newest is not None:
                outputs[:, column] = newest[0, column]
        return outputs

    def _fail(self, error: type[DeviceError], operation: str, message: str) -> None:
        raise error(f"{message} (a fault on purpose)", device=self.spec.name, operation=operation)


class _FaultyManyDevice(FaultyDevice):
    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program each setting in turn and pass the same vectors through: (settings, batch, out_features)."""
        device = self.device
        assert isinstance(device, ProgramsMany)
        return self._asked("query_each", lambda: device.query_each(controls, inputs))
