-- name: add_user(name)^
-- The new user's id.
INSERT INTO users (name) VALUES (:name) RETURNING id;

-- name: users_like(start)
-- Users whose name begins so, in alphabetical order.
SELECT id, name FROM users WHERE starts_with(name, :start) ORDER BY name;

-- name: rename_user(id, name)!
UPDATE users SET name = :name WHERE id = :id;
