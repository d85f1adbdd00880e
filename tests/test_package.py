"""What the package shows to those who import it."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import subprocess
import sys
import textwrap

import flask_pgmonkey

PUBLIC_NAMES = {
    "AsyncDatabase", "ConfigError", "Database", "EnvInterpolationError", "PGConnectionManager",
    "PGMonkey", "PGMonkeyError", "load_config", "normalize_config", "redact_config",
    "resolve_env_vars",
}  # fmt: skip


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_public_names_are_those_of_the_design_and_no_others() -> None:
    assert set(flask_pgmonkey.__all__) == PUBLIC_NAMES
    done = run("from flask_pgmonkey import *; print(*sorted(n for n in dir() if n[0] != '_'))")
    assert set(done.stdout.split()) == PUBLIC_NAMES


def test_errors_are_one_family() -> None:
    assert issubclass(flask_pgmonkey.ConfigError, (flask_pgmonkey.PGMonkeyError, ValueError))
    assert flask_pgmonkey.ConfigError.__mro__.index(ValueError) > 0
    assert issubclass(flask_pgmonkey.EnvInterpolationError, flask_pgmonkey.ConfigError)


def test_types_are_shipped() -> None:
    assert importlib.resources.files("flask_pgmonkey").joinpath("py.typed").is_file()


def test_the_version_of_the_distribution_is_a_release() -> None:
    version = importlib.metadata.version("flask-pgmonkey")
    assert [part.isdigit() for part in version.split(".")] == [True, True, True]


def test_an_import_without_libpq_says_what_to_install() -> None:
    # As psycopg itself does where neither psycopg[binary], psycopg[c] nor libpq is there.
    done = run("""
        import ctypes.util, importlib.abc, sys

        class NoImplementation(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("psycopg_binary", "psycopg_c"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, NoImplementation())
        ctypes.util.find_library = lambda name: None
        from flask_pgmonkey import PGMonkey
    """)
    assert done.returncode == 1
    assert 'pip install "flask-pgmonkey[binary]"' in done.stderr.splitlines()[-1]


def test_the_import_alone_loads_neither_flask_nor_psycopg() -> None:
    # Each pytest of the environment imports the package, for the plugin that lies in it.
    done = run("""
        import sys
        import flask_pgmonkey.testing.plugin
        print({name for name in ("flask", "psycopg", "yaml", "asyncio") if name in sys.modules})
        assert "PGMonkey" in dir(flask_pgmonkey)
        flask_pgmonkey.PGMonkey
        assert "flask" in sys.modules
    """)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_the_import_starts_no_thread() -> None:
    done = run("""
        import threading
        import flask, psycopg, psycopg_pool, yaml
        from flask_pgmonkey import *
        print(threading.active_count())
    """)
    assert (done.stdout, done.stderr) == ("1\n", "")
