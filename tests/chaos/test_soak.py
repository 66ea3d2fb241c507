"""The soak, in short: see `tests.chaos.soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.soak import check, soak

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_nothing_is_answered_wrongly_while_everything_goes_wrong(
    tmp_path: Path, local_ray: None, s3_server: str, serve_port: int
) -> None:
    check(soak(tmp_path, 20, endpoint=s3_server, port=serve_port))
