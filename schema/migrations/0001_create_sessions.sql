-- The sessions, one row each. What the columns are for: schema/README.md.
CREATE TABLE compas_session (
    handle           text COLLATE "C" NOT NULL PRIMARY KEY
                                 CHECK (octet_length(handle) = 12),
    secret_hash      bytea       NOT NULL CHECK (octet_length(secret_hash) = 32),
    former_hash      bytea,
    secret_at        timestamptz NOT NULL DEFAULT now(),
    shown_at         timestamptz,
    epoch            integer     NOT NULL DEFAULT 0,
    data             jsonb       NOT NULL CHECK (jsonb_typeof(data) = 'object'),
    user_id          text,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    expires_at       timestamptz NOT NULL,
    reap_after       date        NOT NULL GENERATED ALWAYS
                                 AS ((expires_at AT TIME ZONE 'UTC')::date) STORED,
    authenticated_at timestamptz,
    own_idle         integer,
    own_absolute     integer,
    user_agent       text,
    address          text
)
-- Room on each page for the next version of a row, so that a renewal stays on its page.
WITH (fillfactor = 80);

-- No index on what a renewal or a new secret writes: those are HOT updates. The cleanup
-- finds its rows by a date that moves once a day at the most.
CREATE INDEX compas_session_reap_after ON compas_session (reap_after);
CREATE INDEX compas_session_user_id ON compas_session (user_id)
    WHERE user_id IS NOT NULL;
