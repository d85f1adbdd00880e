"""A result of any size as a CSV download: it is never in memory as a whole."""

import csv
import io

from flask import Flask, Response

from flask_pgmonkey import PGMonkey

app = Flask(__name__)
db = PGMonkey(app, config="database.yaml")


@app.get("/numbers.csv")
def numbers():
    rows = db.stream("SELECT n, n * 2 FROM generate_series(1, 100000) AS n", batch_size=5000)

    def lines():
        line = io.StringIO()
        writer = csv.writer(line)
        for row in rows:
            writer.writerow(row)
            yield line.getvalue()
            line.seek(0)
            line.truncate()

    return Response(lines(), mimetype="text/csv")
