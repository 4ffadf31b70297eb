"""Combine small chips into one large device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from math import ceil, copysign, hypot, sqrt
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from ..capabilities import Clock, Composite, ProgramsMany, Rehearses, ReportsPeaks, Snapshots
from ..clock import common_clock
from ..device import Device
from ..errors import DeviceError, NotConnected
from ..random import derive_seed
from ..reach import Patch
from ..registry import offer_device
from ..safety import close_each
from ..session import Session
from ..spec import DeviceSpec
from ..usage import Usage
from ..wrapper import DeviceWrapper
from .rehearsal import rehearse

__all__ = ["TiledDevice", "make_tiled"]

_Answer = TypeVar("_Answer")
_Capability = TypeVar("_Capability")


class TiledDevice(DeviceWrapper):
    """Combine small linear chips into one large device: each chip computes blocks of the matrix, and torch adds them.

    The matrix of shape (out_features, in_features) is divided into tiles of the size of a chip; the tiles in the last
    row and the last column may be used in part. If there are as many chips as tiles, every chip keeps its tile, and all
    chips work in parallel. If there are fewer, each chip computes several tiles one after the other and is programmed
    again for every batch, which is efficient for large batches. An output is the sum over a row of tiles, so its noise
    is the noise of one chip times the square root of the number of tiles in a row. Usage counts the operations of every
    chip. The times in the spec are the times for one operation of one chip, divided by the number of chips that work in
    parallel.

    The controls of the device are the controls of all tiles. If the coupling of the chips is elementwise, the controls
    are in the order of the entries of the whole matrix, and the coupling is elementwise. Otherwise they are in the
    order of the tiles, and the controls of a tile change only the block of this tile.

    Args:
        chips: equal linear devices; at least one.
        in_features: number n of inputs of the tiled device.
        out_features: number m of outputs of the tiled device.
        name: name of the tiled device, for messages.
        threads: whether to use one thread for each chip; useful for hardware, which takes time to answer.

    Attributes:
        sessions: sessions on the chips.

    Raises:
        DeviceError: a chip is not linear, the chips have different specs, or the number of chips or inputs is wrong.
    """

    capabilities: ClassVar[tuple[type, ...]] = (Composite, ProgramsMany, Rehearses, ReportsPeaks, Snapshots)
    forwards: ClassVar[tuple[type, ...]] = (Clock,)

    def __init__(
        self,
        chips: Sequence[Device],
        in_features: int,
        out_features: int,
        name: str = "tiled",
        *,
        threads: bool = False,
    ) -> None:
        if not chips:
            raise DeviceError("needs at least one chip", device=name, operation="open")
        # A chip that is given twice is still one chip, which computes its tiles one after the other.
        unique = {id(chip): chip for chip in chips}.values()
        self.sessions = [chip if isinstance(chip, Session) else Session(chip) for chip in unique]
        super().__init__(self.sessions[0])
        self._chip = chip = self.sessions[0].spec
        for session in self.sessions:
            other = session.spec
            if not other.linear:
                raise DeviceError(
                    f"{other.name!r} is not linear, so its partial sums cannot be added; use linear chips",
                    device=name,
                    operation="open",
                )
            if other.model_copy(update={"serial_number": None, "name": ""}) != chip.model_copy(
                update={"serial_number": None, "name": ""}
            ):
                raise DeviceError(
                    f"{other.name!r} and {chip.name!r} have different specs; use chips with equal specs",
                    device=name,
                    operation="open",
                )
        self._rows = ceil(out_features / chip.out_features)
        self._columns = ceil(in_features / chip.in_features)
        self._tiles = self._rows * self._columns
        self.sessions = self.sessions[: self._tiles]
        self._turns = ceil(self._tiles / len(self.sessions))
        self._controls: Tensor | None = None
        self._ascending = True
        self._peaks = torch.empty(0)
        self._threads = threads and len(self.sessions) > 1
        surplus = self._columns * chip.in_features - in_features
        if surplus and chip.input_range is not None and not chip.input_range[0] <= 0 <= chip.input_range[1]:
            raise DeviceError(
                f"{in_features} inputs leave {surplus} inputs of the last chips unused, and unused inputs must be 0, "
                f"but {chip.name!r} does not allow 0; use a multiple of {chip.in_features} inputs",
                device=name,
            )
        self._places = self._elementwise_places(in_features, out_features) if chip.coupling == "elementwise" else None
        self._spec = self._whole(name, in_features, out_features)

    @property
    def spec(self) -> DeviceSpec:
        """Return the spec of the tiled device."""
        return self._spec

    @property
    def usage(self) -> Usage:
        """Return the usage of all chips together."""
        return sum((session.usage for session in self.sessions), Usage())

    def price(self, usage: Usage) -> Usage:
        """Return the largest usage of all chips together that this usage of the tiled device can cause."""
        programs = usage.programs if self._turns == 1 else max(usage.programs, usage.queries)
        total = Usage()
        for place in range(self._tiles):
            session = self._session(place)
            # A chip that lost its controls by a fault is programmed again with the next query.
            lost = self._turns == 1 and not usage.programs and usage.queries > 0 and not session.is_programmed
            total += session.price(Usage(programs=programs + lost, queries=usage.queries, vectors=usage.vectors))
        return total

    def provider(self, protocol: type[_Capability]) -> _Capability | None:
        """Return a common clock of all chips, and None for all other capabilities."""
        clock = common_clock(self.sessions) if protocol is Clock else None
        return clock if isinstance(clock, protocol) else None

    # -- Device -----------------------------------------------------------------------------

    def open(self) -> None:
        """Connect to all chips; if one of them fails, close all."""
        try:
            for session in self.sessions:
                session.open()
        except BaseException:
            # Errors of closing are logged; the error of opening is the one to report.
            with suppress(Exception):
                self.close()
            raise

    def close(self) -> None:
        """Leave all chips in their safe state, even if closing one of them fails or is interrupted."""
        self._controls = None
        close_each([session.close for session in self.sessions])

    def program(self, controls: Tensor) -> None:
        """Set all controls, (num_controls,); a chip with several tiles is programmed only when vectors are queried."""
        # The controls are unknown until every chip has confirmed them.
        self._controls = None
        if self._turns == 1:
            parts = self._split(controls)
            self._each_chip(lambda tile: self.sessions[tile].program(parts[tile]), range(self._tiles))
        self._controls = controls.clone()

    @property
    def peaks(self) -> Tensor:
        """Return, for each vector of the newest query, the largest used share of a chip's output range, (batch,)."""
        return self._peaks

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through all tiles: (batch, in_features) -> (batch, out_features)."""
        if self._controls is None:
            raise NotConnected("no controls are set; call program first", device=self._spec.name, operation="query")
        parts = self._split(self._controls)
        peaks = [inputs.new_zeros(len(inputs))]

        def ask(tile: int, vectors: Tensor) -> Tensor:
            answer = self._session(tile).apply(parts[tile], vectors)
            margin = (self._chip.output_step or 0.0) / 2
            # An output less than half a code away from an end of the range counts as saturated.
            ends = [rail - copysign(margin, rail) for rail in self._chip.rails if len(answer)]
            peaks.extend((answer / end).amax(dim=1) for end in ends)
            return answer

        answers = self._assemble(inputs, ask)
        self._peaks = torch.stack(peaks).amax(dim=0)
        return answers

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program one setting after the other, and pass the same vectors at each; one call runs all settings of a tile.

        Args:
            controls: (settings, num_controls).
            inputs: (batch, in_features).

        Returns:
            (settings, batch, out_features).
        """
        parts = self._split(controls)
        answers = self._assemble(inputs, lambda tile, vectors: self._session(tile).query_each(parts[tile], vectors))
        self._controls = controls[-1].clone()
        return answers

    def rehearsal(self) -> Device:
        """Return a tiled device of substitutes for the chips, which counts the operations of all chips."""
        return TiledDevice(
            [rehearse(session) for session in self.sessions],
            self._spec.in_features,
            self._spec.out_features,
            self._spec.name,
        )

    # -- Snapshots --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every chip, and the controls of the tiled device."""
        return {
            "controls": self._controls,
            "ascending": self._ascending,
            "chips": [session.state_dict() for session in self.sessions],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Restore the state that `state_dict` returned.

        Returns:
            Whether the inner state of every chip was restored. If not, the tiled device must be programmed again.
        """
        restored = [session.load_state_dict(part) for session, part in zip(self.sessions, state["chips"], strict=True)]
        self._ascending = state["ascending"]
        self._controls = state["controls"] if all(restored) else None
        return all(restored)

    # -- tiles ------------------------------------------------------------------------------

    def _session(self, tile: int) -> Session:
        return self.sessions[tile % len(self.sessions)]

    def _whole(self, name: str, in_features: int, out_features: int) -> DeviceSpec:
        chip, columns = self._chip, self._columns
        update: dict[str, Any] = {
            "name": name,
            "in_features": in_features,
            "out_features": out_features,
            "num_controls": self._tiles * chip.num_controls,
            "reach": None,
            # The sum over a row of tiles adds the noise of all tiles, and the rounding of all tiles but one.
            "noise_std": hypot(sqrt(columns) * chip.noise_std, sqrt((columns - 1) / 12) * (chip.output_step or 0.0)),
            "output_range": None,
            "output_levels": None,
            # Usage counts the operations of every chip, but the chips work in parallel.
            "program_seconds": chip.program_seconds / len(self.sessions),
            "vector_seconds": chip.vector_seconds / len(self.sessions),
            "max_batch": None,
            "serial_number": "+".join(session.spec.serial_number or "?" for session in self.sessions),
        }
        if chip.output_range is not None:
            update["output_range"] = tuple(columns * end for end in chip.output_range)
            if chip.output_levels is not None:
                update["output_levels"] = columns * (chip.output_levels - 1) + 1
        if self._places is not None:
            update["num_controls"] = in_features * out_features
        else:
            update["coupling"] = "sparse"
            update["reach"] = tuple(
                placed
                for tile in range(self._tiles)
                for patch in self._chip_patches()
                for placed in self._placed(patch, tile, in_features, out_features)
            )
        return DeviceSpec.model_validate({**chip.model_dump(), **update})

    def _chip_patches(self) -> tuple[Patch, ...]:
        chip = self._chip
        if chip.reach is not None:
            return chip.reach
        if chip.coupling == "output":
            run = chip.num_controls // chip.out_features
            return tuple(
                Patch(controls=run, outputs=(row, row + 1), inputs=(0, chip.in_features))
                for row in range(chip.out_features)
            )
        return (Patch(controls=chip.num_controls, outputs=(0, chip.out_features), inputs=(0, chip.in_features)),)

    def _placed(self, patch: Patch, tile: int, in_features: int, out_features: int) -> list[Patch]:
        """Return the patches of the tiled device for one patch of a chip, without the unused part of the tile."""
        row, column = divmod(tile, self._columns)
        outputs = _shifted(range(*patch.outputs), row * self._chip.out_features, out_features)
        inputs = _shifted(range(*patch.inputs), column * self._chip.in_features, in_features)
        if patch.split is None or not outputs or not inputs:
            return [_patch(patch.controls, outputs, inputs, patch.split if outputs and inputs else None)]
        kept, whole = (inputs, patch.inputs) if patch.split == "inputs" else (outputs, patch.outputs)
        share = len(range(*whole)) // patch.controls
        full, rest = divmod(len(kept), share)

        def part(controls: int, indices: range) -> Patch:
            sides = (outputs, indices) if patch.split == "inputs" else (indices, inputs)
            return _patch(controls, *sides, patch.split if indices else None)

        parts = [part(full, kept[: full * share])] if full else []
        parts += [part(1, kept[full * share :])] if rest else []
        unused = patch.controls - full - bool(rest)
        return parts + ([part(unused, kept[:0])] if unused else [])

    def _elementwise_places(self, in_features: int, out_features: int) -> Tensor:
        """Return, for each matrix entry, the index of its control among the controls of the tiles, (num_controls,)."""
        height, width = self._chip.out_features, self._chip.in_features
        i, j = torch.arange(out_features).unsqueeze(1), torch.arange(in_features)
        tile = (i // height) * self._columns + j // width
        return (tile * self._chip.num_controls + (i % height) * width + j % width).flatten()

    def _split(self, controls: Tensor) -> list[Tensor]:
        """Return the controls of each tile, (..., num_controls of a chip)."""
        count = self._chip.num_controls
        if self._places is not None:
            low, high = self._chip.control_range or (0.0, 0.0)
            # Controls of unused entries have the legal value that is nearest to zero.
            full = controls.new_full((*controls.shape[:-1], self._tiles * count), min(max(low, 0.0), high))
            full[..., self._places.to(controls.device)] = controls
            controls = full
        return [part.contiguous() for part in controls.split(count, dim=-1)]

    def _assemble(self, inputs: Tensor, ask: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Add the answers of each row of tiles, and concatenate the rows."""
        width = self._chip.in_features
        surplus = self._columns * width - inputs.shape[1]
        padded = torch.nn.functional.pad(inputs, (0, surplus)).split(width, dim=1)
        # The order alternates, so that a chip with several tiles starts with the tile that it has computed last.
        order = range(self._tiles) if self._ascending else range(self._tiles - 1, -1, -1)
        if self._turns > 1:
            self._ascending = not self._ascending
        answers = self._each_chip(lambda tile: ask(tile, padded[tile % self._columns].contiguous()), order)
        # Added in a fixed order, because floating-point sums depend on the order.
        rows = [
            sum(
                (answers[row * self._columns + column] for column in range(1, self._columns)),
                answers[row * self._columns],
            )
            for row in range(self._rows)
        ]
        return torch.cat(rows, dim=-1)[..., : self._spec.out_features]

    def _each_chip(self, work: Callable[[int], _Answer], order: Sequence[int]) -> dict[int, _Answer]:
        """Call a function for every tile: one tile after the other on each chip, but chips in parallel with threads."""
        if not self._threads:
            return {tile: work(tile) for tile in order}
        count = len(self.sessions)
        by_chip = [[tile for tile in order if tile % count == chip] for chip in range(count)]
        with ThreadPoolExecutor(count) as pool:
            # Each thread records under the purpose of this thread, and within the budget of the whole device.
            futures = [
                pool.submit(copy_context().run, lambda tiles: {tile: work(tile) for tile in tiles}, tiles)
                for tiles in by_chip
            ]
            return {tile: answer for future in futures for tile, answer in future.result().items()}


def make_tiled(
    in_features: int,
    out_features: int,
    *,
    chip: str = "mrr",
    tile: int = 64,
    chips: int | None = None,
    seed: int = 0,
    **options: Any,
) -> TiledDevice:
    """Combine small chips into one large device; see `TiledDevice`.

    Args:
        in_features: number n of inputs of the tiled device.
        out_features: number m of outputs of the tiled device.
        chip: registered device of size tile x tile.
        tile: number of inputs and outputs of a chip.
        chips: number of chips; None for one per tile.
        seed: seed from which the seed of every chip is derived.
        **options: options of every chip.
    """
    if tile < 1:
        raise ValueError(f"tile must be at least 1, not {tile}")
    count = ceil(in_features / tile) * ceil(out_features / tile)
    wanted = count if chips is None else chips
    if wanted < 1:
        raise ValueError(f"chips must be at least 1, not {wanted}")
    made = [
        offer_device(chip, {"seed": derive_seed(seed, "tile", number)}, in_features=tile, out_features=tile, **options)
        for number in range(min(wanted, count))
    ]
    return TiledDevice(made, in_features, out_features, name=f"tiled-{chip}")


def _shifted(indices: range, offset: int, limit: int) -> range:
    """Return indices moved by an offset, without indices that reach the limit."""
    return range(indices.start + offset, min(indices.stop + offset, limit), indices.step)


def _patch(controls: int, outputs: range, inputs: range, split: Literal["inputs", "outputs"] | None) -> Patch:
    stripes = [(side.start, side.stop, side.step) if side else (0, 0, 1) for side in (outputs, inputs)]
    return Patch(controls=controls, outputs=stripes[0], inputs=stripes[1], split=split)
