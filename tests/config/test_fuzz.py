"""A thousand configs with planted secrets: each works, or is an error of ours that keeps them.

``python -m tests.config.test_fuzz 7 100000`` tries others, by hand.
"""

from __future__ import annotations

import io
import logging
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask import Flask

from flask_pgmonkey import PGMonkey, PGMonkeyError
from flask_pgmonkey.config import (
    check_config,
    load_config,
    normalize_config,
    read_config,
    redact_config,
    resolve_env_vars,
)
from flask_pgmonkey.config.provenance import shown_values
from flask_pgmonkey.config.values import CONNECTION_KEYS, POOL_KEYS, SECTIONS
from flask_pgmonkey.csv_transfer import read_import_settings

pytestmark = pytest.mark.any_version

SEED = 20_250_301
HOW_MANY = 1_000
SECRET = "hunter2-planted"

ODD: list[Any] = [
    None, True, False, 0, -1, 1.5, float("nan"), float("inf"), 10**400, "", " ", "on", "auto", "5",
    "1,2", "${", "${X", "${NOT_SET}", "${NOT_SET:-1}", "$${", "\0", "\ud800", "🐒", "a" * 2_000, [],
    {}, [1], {"a": 1}, {"from_env": "NOT_SET"}, {"from_env": 1}, {"from_file": "/dev/zero"},
    {"from_file": ""}, {"from_command": ["echo"]}, {1: 2}, b"x", object(), print, (1, 2), {1, 2},
    "localhost", "/tmp", "postgresql://", "postgresql://%", "host=db",
]  # fmt: skip

# Where a secret stands so that it must not show.
PLANTED: list[Callable[[str], dict[str, Any]]] = [
    lambda secret: {"connection_settings": {"password": secret}},
    lambda secret: {"connection_settings": {"password": [secret]}},
    lambda secret: {"connection_settings": {"password": {f"x={secret}": secret}}},
    lambda secret: {"connection_settings": {"password": f"${{NOT_SET:-{secret}}}"}},
    lambda secret: {"connection_settings": {"password": f"${{{secret}"}},
    lambda secret: {"connection_settings": {"password": {"from_command": ["false", secret]}}},
    lambda secret: {"connection_settings": {"password": {"from_command": secret}}},
    lambda secret: {"connection_settings": {"password": {"from_command": [[secret]]}}},
    lambda secret: {"connection_settings": {"password": {"from_command": ["x"], "ttl": secret}}},
    lambda secret: {"connection_settings": {"password": f"{secret}\0"}},
    lambda secret: {"connection_settings": {"passwrod": secret}},
    lambda secret: {"connection_settings": {"password": {"from_file": "${PLANTED}"}}},
    lambda secret: {"connection_settings": {"password": "${PLANTED}", "port": "${PLANTED}"}},
    lambda secret: {"connection_settings": {"sslmode": {"from_env": "PLANTED"}}},
    lambda secret: {"connection_settings": {"connect_timeout": "${PLANTED}"}},
    lambda secret: {"connection_settings": {"service": "x${PLANTED}"}},
    lambda secret: {"pool_settings": {"max_size": {"from_env": "PLANTED"}}},
    lambda secret: {"async_pool_settings": {"timeout": ["${PLANTED}"]}},
    lambda secret: {"connection_type": "${PLANTED}"},
    lambda secret: {"connection_settings": {f"password={secret}": 1}},
    lambda secret: {"connection_settings": {"sslpassword": secret, "sslkey": secret}},
    lambda secret: {"connection_settings": {"options": f"-c app.token={secret} -c a=b"}},
    lambda secret: {"connection_settings": {"options": f"--app.pass\\word={secret}"}},
    lambda secret: {"connection_settings": {"host": f"postgresql://u:{secret}@h/d"}},
    lambda secret: {"connection_settings": {"dbname": f"host=h password={secret}"}},
    lambda secret: {"connection_settings": {"application_name": f"x://u:{secret}@h"}},
    lambda secret: {"connection_settings": {"uri": f"postgresql://u:{secret}@h/d?sslmode=x"}},
    lambda secret: {"connection_settings": {"uri": f"postgresql://u:x@{secret}@h/d"}},
    lambda secret: {"connection_settings": {"uri": f"postgresql://u:x/{secret}@h/d"}},
    lambda secret: {"connection_settings": {"uri": f"postgresql://u:x?{secret}=1@h/d"}},
    lambda secret: {"connection_settings": {"uri": f"mysql://u:{secret}@h/d"}},
    lambda secret: {"connection_settings": f"postgresql://u:{secret}@h/d"},
    lambda secret: {"sync_settings": {"app.api_token": secret}},
    lambda secret: {"async_settings": {"app.secret": [secret]}},
    lambda secret: {"x-login": {"password": secret}},
    lambda secret: {"postgresql": {"connection_settings": {"password": secret}}},
]

TAGS = ["!!bool", "!!int", "!!float", "!!timestamp", "!!binary", "!!null", "!!set", "!!omap", "!x"]


class Fuzz:
    """Makes configs, and looks at what comes of them."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.file = folder / "db.yaml"
        self.csv_settings = folder / "orders.yaml"
        self.logged = io.StringIO()

    def config(self) -> Any:
        """Some sections with some keys, and a secret or two."""
        choose = self.random.choice
        config: dict[Any, Any] = {}
        for section in self.random.sample(sorted(SECTIONS), self.random.randint(0, 3)):
            keys = {
                "connection_settings": sorted(CONNECTION_KEYS - {"uri"}),
                "sync_settings": ["jit", "work_mem", "a.b", "a b"],
                "async_settings": ["jit", "work_mem", "host"],
            }.get(section, sorted(POOL_KEYS))
            count = self.random.randint(0, 4)
            config[section] = {choose(keys): choose(ODD) for _ in range(count)}
        if self.random.random() < 0.3:
            config[choose(["connection_type", "x-y", "zzz", "postgresql", 5])] = choose(ODD)
        for plant in self.random.sample(PLANTED, self.random.randint(1, 2)):
            for section, content in plant(SECRET).items():
                if isinstance(content, dict) and isinstance(config.get(section), dict):
                    config[section].update(content)
                else:
                    config[section] = content
        return config

    def text(self, config: Any) -> bytes:
        """*config* as YAML, with a tag before a secret and some letters changed, now and then."""
        text: str = yaml.dump(config, Dumper=_Dumper, allow_unicode=True)
        if self.random.random() < 0.3:
            text = text.replace(SECRET, f"{self.random.choice(TAGS)} {SECRET}", 1)
        letters = list(text)
        for _ in range(self.random.choice([0, 0, 0, 1, 3])):
            place = self.random.randrange(len(letters))
            letters[place] = self.random.choice("\n\t :-{}[]&*!|>'\"%@`#,?x")
        return "".join(letters).encode("utf-8", "surrogatepass")

    def use(self, config: Any) -> None:
        """Whatever can be done with a mapping, and with a file of the same content."""
        resolve_env, allow = self.random.choice([(False, False), (True, False), (True, True)])
        how: dict[str, Any] = {"resolve_env": resolve_env, "allow_sensitive_defaults": allow}
        self.file.write_bytes(self.text(config))
        self.file.chmod(self.random.choice([0o600, 0o644]))
        self.csv_settings.write_bytes(self.file.read_bytes())
        for source in (config, self.file):
            self.keeps_secrets(partial(check_config, source, **how))
            self.keeps_secrets(partial(self.show, source, how))
            self.keeps_secrets(partial(self.register, source, how))
        self.keeps_secrets(partial(load_config, self.file))
        self.keeps_secrets(partial(load_config, self.file, **how))
        self.keeps_secrets(partial(read_import_settings, self.csv_settings))
        self.keeps_secrets(partial(resolve_env_vars, config, allow))
        self.keeps_secrets(partial(normalize_config, config))
        self.keeps_secrets(partial(redact_config, config))
        assert SECRET not in self.logged.getvalue()

    def show(self, source: Any, how: dict[str, Any]) -> None:
        read = read_config(source, **how)
        read.connect_kwargs()
        if source is not self.file:  # where changed letters could move it out of its place
            shown = shown_values(read)
            assert SECRET not in f"{read!r} {read.unresolved!r} {read.target} {read.key} {shown}"

    def register(self, source: Any, how: dict[str, Any]) -> None:
        app = Flask("fuzz", root_path=str(self.file.parent), instance_path=str(self.file.parent))
        app.config["PGMONKEY_BINDS"] = {"other": source}
        app.config.update({f"PGMONKEY_{key.upper()}": value for key, value in how.items()})
        PGMonkey(app, config="postgresql://u@127.0.0.1:1/d")

    def keeps_secrets(self, function: Callable[[], object]) -> None:
        """Call *function*: only an error of ours may come of it, and no secret in its chain."""
        links: list[BaseException | None] = []
        try:
            function()
        except PGMonkeyError as error:
            links.append(error)
        assert "\n" not in "".join(map(str, links))
        while links:
            link = links.pop()
            if link is not None:
                assert SECRET not in f"{link} {link!r}", type(link)
                links += [link.__cause__, link.__context__]


class _Dumper(yaml.SafeDumper):
    """Writes what is no YAML as a text."""


_Dumper.add_multi_representer(object, lambda dumper, value: dumper.represent_str(repr(value)))


@contextmanager
def logs_and_warnings_in(stream: io.StringIO) -> Iterator[None]:
    logger = logging.getLogger("flask_pgmonkey")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        stream.writelines(str(warning.message) for warning in caught)
    finally:
        logger.removeHandler(handler)


def run(seed: int, how_many: int, folder: Path) -> None:
    """Try *how_many* configs, the same for the same *seed*."""
    fuzz = Fuzz(seed, folder)
    with logs_and_warnings_in(fuzz.logged):
        for number in range(how_many):
            config = fuzz.config()
            try:
                fuzz.use(config)
            except BaseException as error:
                error.args = (f"{error.args}: config {number} of seed {seed}: {config!r}",)
                raise
    assert SECRET not in fuzz.logged.getvalue()


def test_a_thousand_configs_with_planted_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PLANTED", SECRET)
    start = time.monotonic()
    run(SEED, HOW_MANY, tmp_path)
    assert time.monotonic() - start < 60  # 8 s where nothing else runs


if __name__ == "__main__":
    os.environ["PLANTED"] = SECRET
    with tempfile.TemporaryDirectory() as folder:
        run(int(sys.argv[1]), int(sys.argv[2]), Path(folder))
