-- %(missing)s orders of the past 60 days, of one to three lines each, the newest last. All but those
-- of the last day are shipped, and every 17th was cancelled.
-- They are history: they took their stock before it was counted.

WITH numbers AS MATERIALIZED (
    SELECT
        nextval(pg_get_serial_sequence('orders', 'id')) AS id,
        now() - interval '60 days' * (1 - n::float / %(missing)s) AS placed_at
    FROM generate_series(1, %(missing)s) AS n
),
ranked_users AS MATERIALIZED (
    SELECT id, row_number() OVER (ORDER BY id) - 1 AS rank, count(*) OVER () AS of_all
    FROM users
),
ranked_products AS MATERIALIZED (
    SELECT id, price, row_number() OVER (ORDER BY id) - 1 AS rank, count(*) OVER () AS of_all
    FROM products
),
lines AS MATERIALIZED (
    SELECT
        numbers.id AS order_id,
        ranked_products.id AS product_id,
        1 + (numbers.id + line) %% 4 AS quantity,
        price
    FROM numbers
    CROSS JOIN generate_series(1, 1 + numbers.id %% 3) AS line
    JOIN ranked_products ON rank = (numbers.id * 5 + line) %% of_all
),
totals AS (
    SELECT order_id AS id, sum(quantity * price) AS total
    FROM lines
    GROUP BY order_id
),
placed AS (
    INSERT INTO orders (id, user_id, total, placed_at, status)
    SELECT
        numbers.id, ranked_users.id, total, placed_at,
        CASE
            WHEN numbers.id %% 17 = 11 THEN 'cancelled'
            WHEN placed_at < now() - interval '1 day' THEN 'shipped'
            ELSE 'placed'
        END::order_status
    FROM numbers
    JOIN totals USING (id)
    JOIN ranked_users ON rank = numbers.id * 3 %% of_all
)
INSERT INTO order_lines (order_id, product_id, quantity, price)
SELECT order_id, product_id, quantity, price FROM lines
