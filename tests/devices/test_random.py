import torch

from astralora.devices import derive_generator, derive_seed


def test_derived_seeds_differ_by_purpose() -> None:
    seeds = {derive_seed(seed, what) for seed in range(100) for what in ("noise", "chip", "wander")}
    assert len(seeds) == 300


def test_derived_streams_are_reproducible() -> None:
    # A different number would change every simulated chip.
    assert derive_seed(0, "noise") == 6667201576106393138
    first = torch.rand(3, generator=derive_generator(7, "a", 1))
    again = torch.rand(3, generator=derive_generator(7, "a", 1))
    assert torch.equal(first, again)
