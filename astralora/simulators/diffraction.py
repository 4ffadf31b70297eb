"""Define diffractive optics: free space, a random screen, a programmable mask and a camera."""

from __future__ import annotations

from math import ceil, pi, sqrt
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ..devices import Coupling, Range, derive_generator
from .physics import Physics

__all__ = ["Diffractive"]

_METRES_PER_NM = 1e-9
_METRES_PER_MM = 1e-3


class Diffractive(Physics):
    """Simulate free-space optics: a fixed random phase screen, a programmable mask and a camera for magnitudes.

    The inputs are the amplitudes of square patches of the aperture. Light travels to the screen, then to the mask, then
    to the camera. Each distance is computed with the angular spectrum: the phase of a Fourier component grows by
    k_z = sqrt(k^2 - k_x^2 - k_y^2) per metre (Goodman, Introduction to Fourier Optics, section 3.10). The aperture is
    padded to twice its width for this, so that light that leaves the aperture is lost. For each output, the camera
    reports the mean magnitude of the field over a patch.

    Controls: the amplitudes of all pixels of the mask, row by row, or the phases of all pixels, or first all amplitudes
    and then all phases. Amplitudes are set by angles, a = sin^2(w / 4), from dark at 0 to clear at 2 pi, as in a
    modulator between polarizers. With two beams, the controls of the mask of the second beam follow.

    Attributes:
        mask: quantity that a pixel of the mask sets.
        beams: 1, or 2 for two beams with one mask each; their magnitudes are then subtracted.
        pixels: side of the mask, in pixels; None for twice the larger number of patches along a side.
        wavelength_nm: wavelength of the light, in nanometres.
        aperture_mm: side of the square aperture, in millimetres.
        distance_m: distance between one plane and the next, in metres.
        screen_seed: seed of the random screen.
    """

    coupling: ClassVar[Coupling] = "dense"
    linear: ClassVar[bool] = False
    control_range: ClassVar[Range] = (0.0, 2 * pi)

    mask: Literal["phase", "amplitude", "both"] = "phase"
    beams: Literal[1, 2] = 1
    pixels: PositiveInt | None = None
    wavelength_nm: float = Field(default=632.0, gt=0)
    aperture_mm: float = Field(default=10.0, gt=0)
    distance_m: float = Field(default=0.5, gt=0)
    screen_seed: int = 0

    def side(self, in_features: int, out_features: int) -> int:
        """Return the number of pixels along a side of the mask.

        Raises:
            ValueError: there are fewer pixels than patches along a side of the mask.
        """
        patches = max(_patches(in_features), _patches(out_features))
        if self.pixels is not None and self.pixels < patches:
            raise ValueError(
                f"{in_features} inputs and {out_features} outputs need at least {patches} pixels along a side, "
                f"not {self.pixels}"
            )
        return self.pixels or 2 * patches

    def num_controls(self, in_features: int, out_features: int) -> int:
        """Return the number of pixels, times the controls of a pixel, times beams."""
        return self.side(in_features, out_features) ** 2 * (2 if self.mask == "both" else 1) * self.beams

    def layout(self, in_features: int, out_features: int) -> Tensor:
        """Return the positions of the controls: the pixels of each mask, with one mask below the other."""
        side = self.side(in_features, out_features)
        return torch.arange(self.num_controls(in_features, out_features)).view(-1, side)

    def full_scale(self, in_features: int) -> float:
        """Return twice the magnitude for a fully illuminated aperture, so that bright spots do not saturate."""
        del in_features
        return 2.0

    def transfer(self, controls: Tensor, inputs: Tensor, out_features: int) -> Tensor:
        """Compute the magnitudes at the camera; see `Physics.transfer`."""
        in_features = inputs.shape[-1]
        side = self.side(in_features, out_features)
        light = _spread(inputs, side).to(torch.complex64 if inputs.dtype == torch.float32 else torch.complex128)
        scattered = self._travel(self._travel(light, side) * self._screen(side, light), side)
        fields = []
        for settings in controls.chunk(self.beams, dim=-1):
            passed = scattered * self._mask_factors(settings, side).unsqueeze(-3)  # (..., batch, side, side)
            power = self._travel(passed, side).abs().square()
            # A tiny number is added, because the square root has no derivative at zero.
            fields.append(_patch_means((power + torch.finfo(power.dtype).tiny).sqrt(), out_features))
        return fields[0] if self.beams == 1 else fields[0] - fields[1]

    def propagate(self, field: Tensor) -> Tensor:
        """Propagate a complex field, (..., side, side), to the next plane; light that leaves the aperture is lost."""
        return self._travel(field, field.shape[-1])

    def _mask_factors(self, settings: Tensor, side: int) -> Tensor:
        planes = settings.unflatten(-1, (-1, side, side))
        if self.mask == "phase":
            return torch.polar(torch.ones_like(planes), planes)[..., 0, :, :]
        amplitudes = torch.sin(planes[..., 0, :, :] / 4) ** 2
        return amplitudes if self.mask == "amplitude" else torch.polar(amplitudes, planes[..., 1, :, :])

    def _screen(self, side: int, like: Tensor) -> Tensor:
        generator = derive_generator(self.screen_seed, "screen", side)
        phases = 2 * pi * torch.rand(side, side, generator=generator, dtype=torch.float64)
        return torch.polar(torch.ones_like(phases), phases).to(like)

    def _travel(self, field: Tensor, side: int) -> Tensor:
        pitch = self.aperture_mm * _METRES_PER_MM / side
        wavenumber = 2 * pi / (self.wavelength_nm * _METRES_PER_NM)
        along = 2 * pi * torch.fft.fftfreq(2 * side, pitch, dtype=torch.float64, device=field.device)
        forwards = wavenumber**2 - along.square() - along.square().unsqueeze(-1)
        # Evanescent components have an imaginary k_z, so they decay.
        turns = torch.polar(torch.ones_like(forwards), forwards.clamp_min(0).sqrt() * self.distance_m)
        filtered = turns * torch.exp(-(-forwards).clamp_min(0).sqrt() * self.distance_m)
        spectrum = torch.fft.fft2(field, s=(2 * side, 2 * side)) * filtered.to(field.dtype)
        further: Tensor = torch.fft.ifft2(spectrum)[..., :side, :side]
        return further


def _patches(width: int) -> int:
    return ceil(sqrt(width))


def _spread(inputs: Tensor, side: int) -> Tensor:
    """Set all pixels of each patch to its amplitude, (batch, n) -> (batch, side, side); all other pixels are zero."""
    patches = _patches(inputs.shape[-1])
    canvas = torch.nn.functional.pad(inputs, (0, patches**2 - inputs.shape[-1])).unflatten(-1, (patches, patches))
    rows = torch.arange(side, device=inputs.device) * patches // side
    picture: Tensor = canvas[..., rows, :][..., rows]
    return picture


def _patch_means(picture: Tensor, out_features: int) -> Tensor:
    """Return the mean over the patch of each output: (..., side, side) -> (..., m)."""
    side, patches = picture.shape[-1], _patches(out_features)
    rows = torch.arange(side, device=picture.device) * patches // side
    share = torch.zeros(patches, side, dtype=picture.dtype, device=picture.device)
    share[rows, torch.arange(side, device=picture.device)] = 1
    share = share / share.sum(dim=1, keepdim=True).clamp_min(1)
    means: Tensor = (share @ picture @ share.mT).flatten(-2)[..., :out_features]
    return means
