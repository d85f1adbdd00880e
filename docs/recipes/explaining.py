"""Find the step of a query that reads too much."""

from flask_pgmonkey import Database

db = Database("database.yaml")
query, params = "SELECT count(*) FROM visits WHERE page = %s", (7,)

with db.transaction() as tx:
    tx.execute("CREATE TEMPORARY TABLE visits (page integer) ON COMMIT DROP")
    tx.execute("INSERT INTO visits SELECT n FROM generate_series(1, 9999) n")
    tx.execute("ANALYZE visits")

    before = tx.explain(query, params, analyze=True)
    for step in before.walk():
        if step.rows_removed:
            print(f"{step.label} dropped {step.rows_removed:g} rows by {step.filter}")

    tx.execute("CREATE INDEX ON visits (page)")
    after = tx.explain(query, params)
    print("With an index:", " > ".join(step.type for step in after.walk()))
    print("Its cost is less:", after.root.cost < before.root.cost)

db.close()
