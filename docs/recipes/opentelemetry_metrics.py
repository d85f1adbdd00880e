"""What OpenTelemetry measures: how the pools stand, and how long connections are waited for."""

from flask import Flask

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.metrics import instrument_app

app = Flask(__name__)
db = PGMonkey(app, config="database.yaml")
instrument_app(app)
