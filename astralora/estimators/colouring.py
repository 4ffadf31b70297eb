"""Colour controls so that no two controls of one colour change the same matrix entry."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..devices import DeviceSpec, Patch

__all__ = ["Colouring"]

_Mask = NDArray[np.float32]


class Colouring:
    """Assign a colour to each control, so that controls of one colour change disjoint parts of the transfer matrix.

    Elementwise coupling needs one colour. Output coupling needs one colour for each control of an output. The reach of
    a sparse device is coloured greedily, patch by patch, which gives the smallest number of colours for regular
    structures only.

    Args:
        spec: spec of a device with elementwise, output or sparse coupling.

    Attributes:
        count: number of colours.
        colour: colour of each control, (num_controls,).
    """

    def __init__(self, spec: DeviceSpec) -> None:
        height, width = spec.out_features, spec.in_features
        places = torch.arange(height * width).view(height, width)
        if spec.coupling == "elementwise":
            self.colour = torch.zeros(spec.num_controls, dtype=torch.long)
            self._part_of = torch.arange(spec.num_controls)
            parts = list(places.view(-1, 1))
        elif spec.coupling == "output":
            self._part_of = torch.arange(height).repeat_interleave(spec.num_controls // height)
            self.colour = torch.arange(spec.num_controls) % (spec.num_controls // height)
            parts = list(places)
        else:
            assert spec.reach is not None
            blocks = _blocks(spec.reach, height, width)
            colours, part_of, parts = [], [], []
            for patch, block in zip(spec.reach, blocks, strict=True):
                shares = _shares(patch, places)
                part_of.append(len(parts) + torch.arange(patch.controls) % len(shares))
                order = torch.arange(patch.controls) // len(shares)
                colours.append(block + (order if len(shares[0]) else torch.zeros_like(order)))
                parts += shares
            self.colour, self._part_of = torch.cat(colours), torch.cat(part_of)
        self.count = int(self.colour.max()) + 1
        self._identity = spec.coupling == "elementwise"
        owner = torch.repeat_interleave(torch.tensor([len(part) for part in parts]))
        self._parts = torch.sparse_coo_tensor(
            torch.stack([owner, torch.cat(parts)]),
            torch.ones(len(owner)),
            (len(parts), height * width),
            check_invariants=False,
        ).coalesce()

    def gather(self, values: Tensor) -> Tensor:
        """Sum, for each control, the values of the matrix entries that it changes.

        Args:
            values: one value for each matrix entry, (settings, out_features, in_features).

        Returns:
            (settings, num_controls).
        """
        flat = values.flatten(1)
        if self._identity:
            return flat
        if self._parts.dtype != values.dtype or self._parts.device != values.device:
            self._parts = self._parts.to(values.device, values.dtype)
        sums: Tensor = (self._parts @ flat.mT).mT
        return sums[:, self._part_of.to(values.device)]


def _shares(patch: Patch, places: Tensor) -> list[Tensor]:
    """Return the matrix entries that the controls of a patch change: one share for each control, or one for all."""
    rectangle = places[slice(*patch.outputs)][:, slice(*patch.inputs)]
    if patch.split is None:
        return [rectangle.flatten()]
    axis = 0 if patch.split == "outputs" else 1
    return [share.flatten() for share in rectangle.chunk(patch.controls, dim=axis)]


def _blocks(patches: tuple[Patch, ...], height: int, width: int) -> list[int]:
    """Return the first colour of each patch; patches that overlap get different colours.

    Controls that divide the rectangle of the patch all have the same colour. Controls that all change the whole
    rectangle have different colours.
    """
    rows = _mask([range(*patch.outputs) for patch in patches], height)
    columns = _mask([range(*patch.inputs) for patch in patches], width)
    overlap = (rows @ rows.T > 0) & (columns @ columns.T > 0)
    needs = [
        0 if not (row.any() and column.any()) else 1 if patch.split else patch.controls
        for patch, row, column in zip(patches, rows, columns, strict=True)
    ]
    starts: list[int] = []
    for place, need in enumerate(needs):
        taken = sorted((starts[other], needs[other]) for other in np.flatnonzero(overlap[place, :place]))
        free = 0
        for start, length in taken:
            if free + need <= start:
                break
            free = max(free, start + length)
        starts.append(free)
    return starts


def _mask(ranges: list[range], size: int) -> _Mask:
    mask = np.zeros((len(ranges), size), dtype=np.float32)
    for place, indices in enumerate(ranges):
        mask[place, slice(indices.start, indices.stop, indices.step)] = 1
    return mask
