"""An event stream, and a call to another service, that hold no connection while they wait."""

import time

from flask import Flask, Response, stream_with_context

from flask_pgmonkey import PGMonkey

app = Flask(__name__)
db = PGMonkey(app, config="database.yaml")


def ask_another_service(name: str) -> str:
    time.sleep(0.1)
    return name.upper()


@app.post("/users/<name>/nickname")
def give_nickname(name: str):
    id = db.fetch_value("INSERT INTO users (name) VALUES (%s) RETURNING id", [name])
    db.release()
    nickname = ask_another_service(name)
    db.execute("INSERT INTO nicknames (name) VALUES (%s)", [f"{nickname}{id}"])
    return {"id": id}, 201


@app.get("/events")
def events():
    def new_users():
        last = 0
        while True:
            rows = db.fetch_all("SELECT id, name FROM users WHERE id > %s ORDER BY id", [last])
            db.release()  # before each yield and sleep: clients may be slow too
            for id, name in rows:
                yield f"data: {name}\n\n"
                last = id
            time.sleep(1)

    return Response(stream_with_context(new_users()), mimetype="text/event-stream")
