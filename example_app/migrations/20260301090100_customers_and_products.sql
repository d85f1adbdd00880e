-- migrate:up

INSERT INTO users (name, email) VALUES
    ('Ada Lindqvist', 'ada@example.org'),
    ('Bashir Haddad', 'bashir@example.org'),
    ('Chiara Moretti', 'chiara@example.org'),
    ('Dónal O''Brien', 'donal@example.org'),
    ('Esi Mensah', 'esi@example.org'),
    ('Farida Karimova', 'farida@example.org'),
    ('Goro Tanaka', 'goro@example.org'),
    ('Hana Nováková', 'hana@example.org');

INSERT INTO products (name, note, price, stock) VALUES
    ('Fountain pen', 'fine steel nib', 34.00, 14),
    ('Bottled ink, iron gall', '50 ml', 12.50, 22),
    ('Bottled ink, fern green', '50 ml', 11.00, 18),
    ('Notebook A5, dotted', '120 pages', 9.80, 60),
    ('Notebook A6, plain', '64 pages', 5.40, 75),
    ('Letter paper', '50 sheets, 100 g', 8.20, 40),
    ('Envelopes C6, lined', 'pack of 25', 6.90, 44),
    ('Sealing wax', 'four sticks', 13.00, 9),
    ('Brass seal', 'one letter', 27.50, 3),
    ('Pencils HB', 'box of 12', 10.40, 31),
    ('Blotting paper', '10 sheets', 4.60, 52),
    ('Travel inkwell', 'brass and glass', 48.00, 1);

-- migrate:down

TRUNCATE order_lines, orders, products, users RESTART IDENTITY;
