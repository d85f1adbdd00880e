"""The monitor outside debug mode, for those who know a password: /database/."""

import hmac
import os

from flask import Flask, request

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.monitor import monitor_blueprint

app = Flask(__name__)
db = PGMonkey(app, config="database.yaml")


def is_operator() -> bool:
    sent = request.authorization.password if request.authorization else None
    return hmac.compare_digest(sent or "", os.environ["MONITOR_PASSWORD"])


app.register_blueprint(monitor_blueprint(db, authorize=is_operator), url_prefix="/database")
