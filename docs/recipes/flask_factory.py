"""PGMonkey in an app factory: one object for all apps, one pool for each app."""

from flask import Flask

from flask_pgmonkey import PGMonkey

db = PGMonkey()


def create_app(config: str = "database.yaml") -> Flask:
    app = Flask(__name__)
    app.config["PGMONKEY_CONFIG"] = config
    app.config.from_prefixed_env()  # FLASK_PGMONKEY_CONFIG, where it is set, wins
    db.init_app(app)

    @app.get("/users")
    def list_users():
        rows = db.fetch_all("SELECT id, name FROM users ORDER BY id")
        return {"users": [{"id": id, "name": name} for id, name in rows]}

    return app
