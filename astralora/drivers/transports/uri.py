"""Make transports from addresses."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ...devices import DeviceError
from .base import Transport
from .loopback import LoopbackTransport
from .serial_port import SerialTransport
from .sockets import TcpTransport
from .visa import VisaTransport

__all__ = ["SCHEMES", "open_transport", "parse_address"]


def _serial(place: str, options: dict[str, str], timeout: float) -> Transport:
    return SerialTransport(place, timeout, **_options(options, baudrate=int))


def _tcp(place: str, options: dict[str, str], timeout: float) -> Transport:
    _options(options)
    return TcpTransport(*parse_address(place), timeout)


def _visa(place: str, options: dict[str, str], timeout: float) -> Transport:
    return VisaTransport(place, timeout, **_options(options, backend=str))


def _loop(place: str, options: dict[str, str], timeout: float) -> Transport:
    _options(options)
    return LoopbackTransport(place, timeout)


SCHEMES: dict[str, Callable[[str, dict[str, str], float], Transport]] = {
    "serial": _serial,
    "tcp": _tcp,
    "visa": _visa,
    "loop": _loop,
}
"""Functions that make a transport, by the scheme of an address."""

_EXAMPLES = "serial:///dev/ttyUSB0?baudrate=921600, tcp://192.168.1.5:5000, visa://TCPIP::192.168.1.5::5025::SOCKET"


def open_transport(uri: str, timeout: float = 2.0) -> Transport:
    """Return a closed transport for an address.

    Args:
        uri: ``serial://PORT?baudrate=N``, ``tcp://HOST:PORT``, ``visa://RESOURCE?backend=@py``, ``loop://NAME``; each
            accepts ``timeout=SECONDS`` after the question mark.
        timeout: longest time without a byte, in seconds, unless the address gives a timeout.

    Raises:
        DeviceError: the address is not valid.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, n=1)
        hint = f"did you mean {near[0]}://?" if near and separator else f"write, for example, {_EXAMPLES}"
        raise DeviceError(f"{uri!r} is not the address of a port; {hint}")
    # Only the part after "?" is parsed by urlsplit, which would read colons in VISA names as ports.
    place, _, query = rest.partition("?")
    options = dict(parse_qsl(urlsplit(f"?{query}").query, keep_blank_values=True))
    try:
        timeout = float(options.pop("timeout", timeout))
        if not 0 < timeout < 1e6:
            raise ValueError("timeout must be a positive number of seconds")
        if not place and scheme != "loop":
            raise ValueError(f"the part after :// is missing; write, for example, {_EXAMPLES}")
        return SCHEMES[scheme](place, options, timeout)
    except ValueError as error:
        raise DeviceError(f"{uri!r} is not the address of a port: {error}") from None


def parse_address(text: str) -> tuple[str, int]:
    """Split HOST:PORT into host and port number; an IPv6 address must be in brackets.

    Raises:
        ValueError: the text does not have this form.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"write HOST:PORT, such as 127.0.0.1:5000, not {text!r}")
    return host, int(port)


def _options(options: dict[str, str], **types: Callable[[str], Any]) -> dict[str, Any]:
    for name in options:
        if name not in types:
            raise ValueError(f"there is no option {name!r}; known are {', '.join([*types, 'timeout'])}")
    return {name: types[name](value) for name, value in options.items()}
