"""What Prometheus reads: /metrics, with how the pools stand."""

from flask import Flask

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.metrics import metrics_blueprint

app = Flask(__name__)
db = PGMonkey(app, config="database.yaml")
app.register_blueprint(metrics_blueprint())
