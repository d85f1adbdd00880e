"""What load balancers and orchestrators ask: /health/live and /health/ready."""

from flask import Flask

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.health import health_blueprint

app = Flask(__name__)
db = PGMonkey(app, config="database.yaml")
app.register_blueprint(health_blueprint(), url_prefix="/health")
