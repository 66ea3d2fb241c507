"""The soak, in short: see `tests.chaos.soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.soak import check, soak
from tests.servers import free_port

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.mark.parametrize("in_process", [False, True], ids=["replicas", "in process"])
def test_nothing_is_answered_wrongly_while_everything_goes_wrong(
    tmp_path: Path, local_ray: None, s3_server: str, serve_port: int, in_process: bool
) -> None:
    port = free_port() if in_process else serve_port
    check(soak(tmp_path, 20, endpoint=s3_server, port=port, in_process=in_process))
