"""Ray on the network: whether a cluster listens at an address, and who may come to one of our own."""

from __future__ import annotations

import os
import secrets
import socket
import time

from zerogr.errors import UserError

ANSWERS_WITHIN_S = 10.0
"""So long a cluster may take to answer at all."""
OF_OWN_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",  # Ray's own, which nobody reads here
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process more per training; the only machine goes with all its processes
}
"""The environment of a Ray of our own, unless it is set otherwise: processes that cost time and do nothing on one machine."""


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


def prepare_own_ray() -> None:
    """Sets the environment of the Ray that this process is about to start; call it before `ray.init(address="local")`.

    Such a Ray listens on all interfaces and runs what it is sent, so it gets a token of its own. It asks for it unless
    RAY_AUTH_MODE says otherwise, and would leave a new one in the home directory, which need not be writable.
    """
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    for name, value in OF_OWN_RAY.items():
        os.environ.setdefault(name, value)
