"""Whether the process of a container is well: HEALTH, as `9000/metrics`, names what must be answered with success.

Run as a file by `python -I -S`, with nothing but sockets: it starts every few seconds, in a machine that trains.
"""

from __future__ import annotations

import os
import socket
import sys

TIMEOUT_S = 8.0


def is_well(port: int, path: str) -> bool:
    """Ask for a path on the loopback interface; OSError when nothing answers in time."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        status = connection.makefile("rb").readline()
    return b" 200 " in status


if __name__ == "__main__":
    number, _, rest = os.environ["HEALTH"].partition("/")
    sys.exit(not is_well(int(number), f"/{rest}"))
