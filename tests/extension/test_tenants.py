"""Row-level security by ``@db.session_settings``."""

from __future__ import annotations

import psycopg

from ..servers import PrivateServer
from ..tenants import assert_tenants_are_apart


def test_no_tenant_ever_sees_a_row_of_the_other(private_server: PrivateServer) -> None:
    with psycopg.connect(**private_server.settings(), autocommit=True) as owner:
        assert_tenants_are_apart(private_server.settings(), owner)
