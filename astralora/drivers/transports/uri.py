"""Make transports from addresses."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from ...devices import DeviceError
from .base import Transport
from .loopback import LoopbackTransport
from .serial_port import SERIAL_OPTIONS, URL_OPTIONS, SerialTransport
from .sockets import TcpTransport
from .visa import VisaTransport

__all__ = ["SCHEMES", "open_transport", "parse_address"]


def _serial(place: str, options: dict[str, str]) -> Transport:
    return SerialTransport(place, **_options(options, SERIAL_OPTIONS))


def _pyserial(scheme: str, place: str, options: dict[str, str]) -> Transport:
    own = {name: value for name, value in options.items() if name in URL_OPTIONS[scheme]}
    rest = {name: value for name, value in options.items() if name not in own}
    settings = _options(rest, SERIAL_OPTIONS, URL_OPTIONS[scheme])
    query = "&".join(f"{name}={value}" if value else name for name, value in own.items())
    return SerialTransport(f"{scheme}://{place}{'?' if query else ''}{query}", **settings)


def _tcp(place: str, options: dict[str, str]) -> Transport:
    _options(options, {})
    return TcpTransport(*parse_address(place))


def _visa(place: str, options: dict[str, str]) -> Transport:
    return VisaTransport(place, **_options(options, {"backend": str}))


def _loop(place: str, options: dict[str, str]) -> Transport:
    _options(options, {})
    return LoopbackTransport(place)


SCHEMES: dict[str, Callable[[str, dict[str, str]], Transport]] = {
    "serial": _serial,
    "tcp": _tcp,
    "visa": _visa,
    "loop": _loop,
    **{scheme: partial(_pyserial, scheme) for scheme in URL_OPTIONS},
}
"""Functions that make a transport, by the scheme of an address."""

_EXAMPLES = "serial:///dev/ttyUSB0?baudrate=921600, tcp://192.168.1.5:5000, visa://TCPIP::192.168.1.5::5025::SOCKET"
# Options of every address.
_COMMON = ("timeout", "deadline", "settle")


def open_transport(uri: str, timeout: float = 2.0) -> Transport:
    """Return a closed transport for an address.

    Args:
        uri: address of the other end:

            - ``serial://PORT?baudrate=N``, with the options ``bytesize``, ``parity``, ``stopbits``, ``rtscts``,
              ``dsrdtr``, ``xonxoff``, ``rts`` and ``dtr`` of `SerialTransport`;
            - ``socket://HOST:PORT``, ``rfc2217://HOST:PORT``, ``spy://PORT`` and ``hwgrep://PATTERN``, which pyserial
              opens, with the same options;
            - ``tcp://HOST:PORT``;
            - ``visa://RESOURCE?backend=@py``;
            - ``loop://NAME``, in this process; without a name, an echo.

            Each accepts ``timeout=SECONDS``, ``deadline=SECONDS`` and ``settle=SECONDS`` after the question mark; see
            the attributes of `Transport`.
        timeout: longest time without a byte, in seconds, unless the address gives a timeout.

    Raises:
        DeviceError: the address is not valid.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, n=1)
        hint = f"did you mean {near[0]}://?" if near and separator else f"write, for example, {_EXAMPLES}"
        raise DeviceError(f"{uri!r} is not the address of a port; {hint}")
    # A regular expression may contain question marks, and the names of VISA contain colons.
    place, mark, query = rest.rpartition("?") if scheme == "hwgrep" else rest.partition("?")
    if scheme == "hwgrep" and not (mark and _is_query(query)):
        place, query = rest, ""
    try:
        options = _parse_query(query)
        timeout = _seconds(options, "timeout", timeout)
        deadline = _seconds(options, "deadline", None)
        settle = _seconds(options, "settle", 0.0)
        if not place and scheme != "loop":
            raise ValueError(f"the part after :// is missing; write, for example, {_EXAMPLES}")
        transport = SCHEMES[scheme](place, options)
    except ValueError as error:
        raise DeviceError(f"{uri!r} is not the address of a port: {error}") from None
    transport.timeout, transport.deadline, transport.settle = timeout, deadline, settle
    return transport


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


def _options(
    options: dict[str, str], types: Mapping[str, Callable[[str], Any]], others: Iterable[str] = ()
) -> dict[str, Any]:
    for name in options:
        if name not in types:
            raise ValueError(f"there is no option {name!r}; known are {', '.join([*types, *others, *_COMMON])}")
    return {name: types[name](value) for name, value in options.items()}


def _parse_query(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in options:
            raise ValueError(f"the option {name!r} is given twice")
        options[name] = value
    return options


def _seconds(options: dict[str, str], name: str, default: Any) -> Any:
    if name not in options:
        return default
    text = options.pop(name)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not (0 if name == "settle" else 1e-9) <= seconds < 1e6:
        least = "0 or a" if name == "settle" else "a"
        raise ValueError(f"{name} must be {least} positive number of seconds, not {text!r}")
    return seconds


def _is_query(text: str) -> bool:
    """Return whether text after a question mark consists of options of an address, and is no regular expression."""
    known = {*SERIAL_OPTIONS, *_COMMON}
    return all(part.partition("=")[0] in known for part in text.split("&"))
