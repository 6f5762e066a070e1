"""Addresses that a server listens on: bound before anything slow is loaded, refused in one line."""

import errno
import ipaddress
import socket

from tinyllm.errors import UserError


def listen(host: str, port: int, *, host_key: str = "--host", port_key: str = "--port") -> socket.socket:
    """A socket bound to an address.

    Args:
        host_key, port_key: the settings that gave them, for messages.

    Raises:
        UserError: the port is taken, or the address is not one of this machine.
    """
    hint = "give an address of this machine, such as 127.0.0.1"
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        bound = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"no such address ({error})", key=host_key, value=host, hint=hint) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a restart has to wait for old connections
        bound.bind(address)
        return bound
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            hint = "another program listens there; choose another port, or 0 for a free one"
            raise UserError("the port is in use", key=port_key, value=port, hint=hint) from error
        if error.errno == errno.EACCES:
            raise UserError("not permitted", key=port_key, value=port, hint="choose a port from 1024") from error
        raise UserError(error.strerror or "cannot listen", key=host_key, value=host, hint=hint) from error


def url_of(bound: socket.socket) -> str:
    """The address of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
