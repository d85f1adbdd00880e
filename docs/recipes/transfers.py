"""Money that moves in a serializable transaction, and the mail that tells of it."""

from flask import Flask, abort

from flask_pgmonkey import PGMonkey

app = Flask(__name__)
db = PGMonkey(app, config="database.yaml")
sent = []


def send_mail(text):
    sent.append(text)


def transfer(tx, payer, payee, amount):
    balance = tx.fetch_value("SELECT balance FROM accounts WHERE id = %s", [payer])
    if balance < amount:
        abort(409, "There is too little in this account.")
    tx.execute("UPDATE accounts SET balance = balance - %s WHERE id = %s", [amount, payer])
    tx.execute("UPDATE accounts SET balance = balance + %s WHERE id = %s", [amount, payee])
    # Only when it is committed, and once, however often this function ran.
    tx.on_commit(lambda: send_mail(f"{amount} went from {payer} to {payee}."))
    return balance - amount


@app.post("/transfer/<int:payer>/<int:payee>/<int:amount>")
def make_transfer(payer, payee, amount):
    with db.timeout(5):
        left = db.run_transaction(transfer, payer, payee, amount, isolation_level="serializable")
    return {"left": left}
