"""Drive the chip: four methods on numpy arrays, and a spec that claims what the chip does.

The chip accepts and sends lines of text, numbers separated by spaces:

    V v1 v2 ... v64     set all voltages; the answer is OK
    X x1 x2 ... x8      pass one vector; the answer is y1 y2 ... y8
    S                   set all voltages to zero; the answer is OK

Put your own instrument in place of these lines.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from astralora.devices import DeviceSpec
from astralora.drivers.link import LinkDevice
from astralora.drivers.text import TextLine
from astralora.drivers.transports import open_transport

SPEC = DeviceSpec(
    name="bench-chip",
    in_features=8,
    out_features=8,
    num_controls=64,
    input_range=(-1.0, 1.0),
    control_range=(0.0, 5.0),
    control_levels=4096,
    control_unit="V",
    linear=True,
    coupling="elementwise",
    # Sending a program twice does no harm, so that the session can repeat it after a fault of the port.
    idempotent_program=True,
    noise_std=0.0,
    program_seconds=2e-3,
    vector_seconds=1e-4,
)


class BenchChip(LinkDevice):
    """Crossbar of 8 x 8 heaters behind a serial port.

    Args:
        port: address, such as ``serial:///dev/ttyUSB0?baudrate=115200``; add ``&settle=2`` for a board that resets
            when its port is opened.
        timeout: longest silence before the driver gives up, in seconds.
    """

    def __init__(self, port: str, timeout: float = 2.0) -> None:
        super().__init__(SPEC, open_transport(port, timeout))
        # Drops late answers, and refuses answers that are not what the command needs.
        self.line = TextLine(self.transport)

    def _open(self) -> None:
        self.transport.open()

    def _close(self) -> None:
        try:
            self.line.command("S")  # switch the heaters off before the port is closed
        finally:
            self.transport.close()

    def _program(self, controls: NDArray[Any]) -> None:
        self.line.command("V", controls)

    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        return np.array([self.line.numbers("X", vector, count=8) for vector in inputs])
