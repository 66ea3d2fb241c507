"""Whether something listens at an address, before a library that never gives up is sent there."""

from __future__ import annotations

import socket
import time

from zerogr.errors import UserError

ANSWERS_WITHIN_S = 10.0
"""So long a cluster may take to answer at all."""


def check_ray_address(address: str) -> None:
    """Returns if a Ray cluster may be at an address; Ray itself would try for a quarter of an hour.

    Names without a port, such as `auto` and `local`, are Ray's to understand.

    Raises:
        UserError: Nothing listens there.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"RAY_ADDRESS is '{address}', and no Ray cluster answers there ({error}); start it, name another one, or "
                    "unset RAY_ADDRESS to run on this machine alone"
                ) from None
        time.sleep(0.5)
