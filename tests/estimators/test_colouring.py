"""Test the colouring of controls and the reach that it is made from."""

import pytest
import torch

from astralora.devices import DeviceSpec, Patch
from astralora.estimators.colouring import Colouring
from astralora.simulators import Monarch


def spec(n: int, m: int, controls: int, reach: tuple[Patch, ...] | None, coupling: str = "sparse") -> DeviceSpec:
    return DeviceSpec(
        name="s", in_features=n, out_features=m, num_controls=controls, linear=True, coupling=coupling, reach=reach
    )


def monarch(n: int, m: int) -> DeviceSpec:
    law = Monarch()
    return spec(n, m, law.num_controls(n, m), law.reach(n, m))


def moved(n: int, m: int) -> torch.Tensor:
    """Return which entries of a monarch each control moves, by autograd, (controls, m, n)."""
    law = Monarch()
    controls = torch.rand(law.num_controls(n, m), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    jacobian: torch.Tensor = torch.autograd.functional.jacobian(lambda w: law.matrix(w, n, m), controls)
    return jacobian.movedim(-1, 0) != 0


def parts(colouring: Colouring, n: int, m: int) -> torch.Tensor:
    """Return which entries each control reads, (controls, m, n)."""
    single = torch.eye(n * m).view(n * m, m, n)
    return colouring.gather(single).T.view(-1, m, n) != 0


@pytest.mark.parametrize(("n", "m"), [(4, 4), (16, 16), (16, 4), (12, 10), (7, 5)])
def test_a_monarch_needs_two_colours_and_every_control_reads_the_entries_it_moves(n: int, m: int) -> None:
    colouring = Colouring(monarch(n, m))
    assert colouring.count == 2
    assert torch.equal(parts(colouring, n, m), moved(n, m))


PATCHES = (
    Patch(controls=2, outputs=(0, 2), inputs=(0, 4)),
    Patch(controls=1, outputs=(1, 3), inputs=(3, 6)),
    Patch(controls=3, outputs=(3, 4), inputs=(0, 6), split="inputs"),
    Patch(controls=1, outputs=(0, 3, 2), inputs=(5, 6)),
)


def test_controls_of_one_colour_move_disjoint_parts() -> None:
    colouring = Colouring(spec(6, 4, 7, PATCHES))
    assert colouring.count == 3
    read = parts(colouring, 6, 4).long()
    for colour in range(3):
        assert int(read[colouring.colour == colour].sum(dim=0).max()) == 1


def test_gather_sums_the_entries_that_each_control_moves() -> None:
    values = torch.arange(24.0).view(1, 4, 6)
    sums = Colouring(spec(6, 4, 7, PATCHES)).gather(values)[0]
    block = float(values[0, :2, :4].sum())
    assert sums.tolist() == [block, block, float(values[0, 1:3, 3:].sum()), 37.0, 41.0, 45.0, 5.0 + 17.0]


@pytest.mark.parametrize(("coupling", "colours"), [("elementwise", 1), ("output", 6)])
def test_the_simpler_couplings_are_special_cases(coupling: str, colours: int) -> None:
    colouring = Colouring(spec(6, 4, 24, None, coupling))
    assert colouring.count == colours
    values = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(0))
    expected = values.flatten(1) if coupling == "elementwise" else values.sum(dim=2).repeat_interleave(6, dim=1)
    torch.testing.assert_close(colouring.gather(values), expected)


@pytest.mark.parametrize(
    ("patches", "complaint"),
    [
        ([{"controls": 2, "outputs": (0, 5), "inputs": (0, 6)}], "outputs .* but the device has only 4 outputs"),
        ([{"controls": 2, "outputs": (0, 4), "inputs": (3, 2)}], "inputs .* but the device has only 6 inputs"),
        ([{"controls": 4, "outputs": (0, 4), "inputs": (0, 6), "split": "inputs"}], "cannot split 6 inputs among 4"),
        ([{"controls": 3, "outputs": (0, 4), "inputs": (0, 6)}], "have 3 controls, but num_controls is 4"),
    ],
)
def test_a_reach_that_does_not_fit_the_device_is_refused(patches: list[dict[str, object]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        spec(6, 4, 4, tuple(Patch.model_validate(patch) for patch in patches))


@pytest.mark.parametrize(
    ("coupling", "reach"), [("sparse", None), ("dense", (Patch(controls=4, outputs=(0, 4), inputs=(0, 6)),))]
)
def test_reach_and_sparse_coupling_belong_together(coupling: str, reach: tuple[Patch, ...] | None) -> None:
    with pytest.raises(ValueError, match="belong together"):
        spec(6, 4, 4, reach, coupling)
