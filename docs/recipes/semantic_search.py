"""A small semantic search: texts as vectors in PostgreSQL, and those nearest to a question."""

from zlib import crc32

from flask import Flask, request
from pgvector import Vector

from flask_pgmonkey import PGMonkey

app = Flask(__name__)
db = PGMonkey(app, config="embedded", types={"vector": None})  # in a YAML file: types: [vector]


def embed(text: str) -> Vector:
    """What a model makes of a text. This one, for the show, counts its groups of three letters."""
    counts = [0.0] * 256
    letters = f"  {text.lower()}  "
    for place in range(len(letters) - 2):
        counts[crc32(letters[place : place + 3].encode()) % 256] += 1
    return Vector(counts)


@app.cli.command("init-db")
def init_db():
    with db.transaction() as tx:
        tx.execute("CREATE EXTENSION IF NOT EXISTS vector")
        tx.execute("CREATE TABLE notes (text text NOT NULL, embedding vector(256) NOT NULL)")
        # Without an index the answer is exact; with one it is fast from some 10,000 rows on.
        tx.execute("CREATE INDEX ON notes USING hnsw (embedding vector_cosine_ops)")
    db.refresh_types()  # the process has begun without the type


@app.post("/notes")
def add_note():
    text = request.form["text"]
    db.execute("INSERT INTO notes VALUES (%s, %s)", [text, embed(text)])
    return {"text": text}, 201


@app.get("/notes")
def find_notes():
    rows = db.fetch_all(
        "SELECT text, 1 - (embedding <=> %(question)s) FROM notes"
        " ORDER BY embedding <=> %(question)s LIMIT 3",
        {"question": embed(request.args["q"])},
    )
    return {"notes": [{"text": text, "similarity": round(alike, 2)} for text, alike in rows]}
