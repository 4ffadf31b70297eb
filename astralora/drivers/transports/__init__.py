"""Exchange bytes with an instrument over serial ports, sockets, VISA, or memory."""

from .base import Transport
from .loopback import LoopbackTransport
from .serial_port import SerialTransport
from .sockets import TcpTransport
from .uri import open_transport
from .visa import VisaTransport

__all__ = ["LoopbackTransport", "SerialTransport", "TcpTransport", "Transport", "VisaTransport", "open_transport"]
