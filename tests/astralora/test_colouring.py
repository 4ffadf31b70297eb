import pytest
import torch
from pydantic import ValidationError

from astralora.colouring import Colouring
from devices import DeviceSpec, Patch
from simulators import Monarch


def spec(n: int, m: int, controls: int, reach: tuple[Patch, ...] | None, coupling: str = "sparse") -> DeviceSpec:
    return DeviceSpec(
        name="s", in_features=n, out_features=m, num_controls=controls, linear=True, coupling=coupling, reach=reach
    )


def monarch(n: int, m: int) -> DeviceSpec:
    law = Monarch()
    return spec(n, m, law.num_controls(n, m), law.reach(n, m))


def moved(n: int, m: int) -> torch.Tensor:
    """Which entries of a monarch each control moves, by autograd: (controls, m, n)."""
    law = Monarch()
    controls = torch.rand(law.num_controls(n, m), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    jacobian = torch.autograd.functional.jacobian(lambda w: law.matrix(w, n, m), controls)
    return jacobian.movedim(-1, 0) != 0


@pytest.mark.parametrize(("n", "m"), [(4, 4), (16, 16), (16, 4), (12, 10), (7, 5)])
def test_a_monarch_takes_two_colours_and_every_entry_has_its_true_owners(n: int, m: int) -> None:
    colouring = Colouring(monarch(n, m))
    assert len(colouring) == 2
    truth = moved(n, m)
    for control, entries in enumerate(truth):
        mine = colouring.owners[colouring.colour[control]] == control
        assert torch.equal(mine, entries)


def test_controls_of_overlapping_patches_get_different_colours() -> None:
    patches = (
        Patch(controls=2, outputs=(0, 2), inputs=(0, 4)),
        Patch(controls=1, outputs=(1, 3), inputs=(3, 6)),
        Patch(controls=3, outputs=(3, 4), inputs=(0, 6), split="inputs"),
        Patch(controls=1, outputs=(0, 3, 2), inputs=(5, 6)),
    )
    colouring = Colouring(spec(6, 4, 7, patches))
    assert colouring.colour.tolist() == [0, 1, 2, 0, 0, 0, 0]
    assert len(colouring) == 3


def test_gathers_what_belongs_to_each_control_of_a_colour() -> None:
    patches = (Patch(controls=2, outputs=(0, 2), inputs=(0, 4), split="outputs"),)
    colouring = Colouring(spec(6, 3, 2, patches))
    values = torch.arange(18.0).view(3, 6)
    assert torch.equal(colouring.gather(0, values), values[:2, :4].sum(dim=1))


@pytest.mark.parametrize(
    ("patches", "complaint"),
    [
        ([{"controls": 2, "outputs": (0, 5), "inputs": (0, 6)}], "outputs .* are not within the device's 4"),
        ([{"controls": 2, "outputs": (0, 4), "inputs": (3, 3)}], "inputs .* are not within the device's 6"),
        ([{"controls": 4, "outputs": (0, 4), "inputs": (0, 6), "split": "inputs"}], "cannot split 6 inputs among 4"),
        ([{"controls": 3, "outputs": (0, 4), "inputs": (0, 6)}], "have 3 controls, but num_controls is 4"),
    ],
)
def test_refuses_a_reach_that_does_not_fit(patches: list[dict[str, object]], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        spec(6, 4, 4, tuple(Patch.model_validate(patch) for patch in patches))


@pytest.mark.parametrize(
    ("coupling", "reach"), [("sparse", None), ("dense", (Patch(controls=4, outputs=(0, 4), inputs=(0, 6)),))]
)
def test_reach_and_sparse_coupling_belong_together(coupling: str, reach: tuple[Patch, ...] | None) -> None:
    with pytest.raises(ValidationError, match="belong together"):
        spec(6, 4, 4, reach, coupling)
