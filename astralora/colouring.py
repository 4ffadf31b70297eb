"""Graph colouring of controls: those that move no matrix entry in common can be moved together, and told apart."""

from __future__ import annotations

import torch
from torch import Tensor

from devices import DeviceSpec, Patch

__all__ = ["Colouring"]


class Colouring:
    """Controls of one colour move disjoint parts of the transfer matrix.

    One colour is enough for elementwise coupling, as many as an output has controls for output coupling. A sparse reach
    is coloured greedily, run by run: not always with the fewest colours, though for regular structures it is.

    Args:
        spec: of a device with elementwise, output or sparse coupling.

    Attributes:
        colour: of each control, (num_controls,).
        owners: by colour, the control that moves each entry of the transfer matrix; -1 where none does:
            (colours, out_features, in_features).
    """

    def __init__(self, spec: DeviceSpec) -> None:
        shape = (spec.out_features, spec.in_features)
        if spec.coupling == "elementwise":
            self.colour = torch.zeros(spec.num_controls, dtype=torch.long)
            self.owners = torch.arange(spec.num_controls).view(1, *shape)
        elif spec.coupling == "output":
            runs = torch.arange(spec.num_controls).view(spec.out_features, -1)
            self.colour = torch.arange(runs.shape[1]).repeat(spec.out_features)
            self.owners = runs.mT.unsqueeze(2).expand(-1, *shape)
        else:
            assert spec.reach is not None
            self.colour, self.owners = _coloured(spec.reach, *shape)

    def __len__(self) -> int:
        return len(self.owners)

    def gather(self, colour: int, values: Tensor) -> Tensor:
        """Sum what belongs to each control of a colour: (out_features, in_features) -> (num_controls,)."""
        owner = self.owners[colour].to(values.device)
        sums = values.new_zeros(len(self.colour) + 1)  # the last one for entries of nobody
        return sums.index_add_(0, owner.flatten() % len(sums), values.flatten())[:-1]


def _coloured(patches: tuple[Patch, ...], height: int, width: int) -> tuple[Tensor, Tensor]:
    colours: list[Tensor] = []
    colour_of: list[Tensor] = []
    start = 0
    for patch in patches:
        rows, columns = torch.arange(*patch.outputs), torch.arange(*patch.inputs)
        place = (rows.unsqueeze(1), columns)
        controls = torch.arange(start, start + patch.controls)
        start += patch.controls
        if patch.split is None:
            # Each of them moves all of the rectangle: one after the other.
            owners = [control.expand(len(rows), len(columns)) for control in controls]
        else:
            share = controls.repeat_interleave(len(rows if patch.split == "outputs" else columns) // patch.controls)
            share = share.unsqueeze(1) if patch.split == "outputs" else share
            owners = [share.expand(len(rows), len(columns))]
        given = []
        for owner in owners:
            free = next((c for c, taken in enumerate(colours) if bool((taken[place] < 0).all())), len(colours))
            if free == len(colours):
                colours.append(torch.full((height, width), -1))
            colours[free][place] = owner
            given.append(free)
        colour_of.append(torch.tensor(given).expand(patch.controls) if len(given) == 1 else torch.tensor(given))
    return torch.cat(colour_of), torch.stack(colours)
