CREATE TABLE users (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    username text UNIQUE NOT NULL,
    password text NOT NULL
);
CREATE TABLE posts (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    author_id integer NOT NULL REFERENCES users,
    created timestamptz NOT NULL DEFAULT now(),
    title text NOT NULL
);
CREATE TABLE counts (posts bigint NOT NULL);
INSERT INTO users (username, password) VALUES ('test', 'pbkdf2:sha256:1$x$x');
