"""The kit's own container, where a Docker engine has the image or can have it."""

from __future__ import annotations

import pytest

from flask_pgmonkey.testing.server import DOCKER_IMAGE

from .conftest import RunPytest
from .test_plugin import passed


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_container_serves_where_there_is_an_engine(run_pytest: RunPytest, workers: str) -> None:
    done = run_pytest("-n", workers, on="docker")
    assert passed(done) > 40
    if workers == "0":
        assert f"flask_pgmonkey: PostgreSQL in a container of {DOCKER_IMAGE}\n" in done.stdout
