-- API tokens: their digests, never the tokens.
CREATE TABLE token (
    token           text COLLATE "C" PRIMARY KEY,
    actor           text NOT NULL DEFAULT '',
    role            text NOT NULL DEFAULT '',
    digest          bytea,
    issued_us       bigint,
    expires_us      bigint,
    issued_by       text NOT NULL DEFAULT '',
    revoked_us      bigint,
    revoked_by      text NOT NULL DEFAULT ''
);
CREATE INDEX token_digest ON token (digest);
