import pytest
from flaskr import create_app, init_db


@pytest.fixture(scope="session")
def pgmonkey_schema():
    return init_db


@pytest.fixture
def app(pgmonkey_database):
    return create_app({"TESTING": True})


@pytest.fixture
def client(app):
    return app.test_client()
