-- The sessions, one row each. What the columns are for: schema/README.md.
CREATE TABLE compas_session (
    id_hash          bytea       NOT NULL PRIMARY KEY
                                 CHECK (octet_length(id_hash) = 32),
    data             jsonb       NOT NULL CHECK (jsonb_typeof(data) = 'object'),
    user_id          text        GENERATED ALWAYS AS (data ->> 'user_id') STORED,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    expires_at       timestamptz NOT NULL,
    reap_after       date        NOT NULL,
    authenticated_at timestamptz,
    own_idle         integer,
    own_absolute     integer,
    previous_id_hash bytea,
    previous_until   timestamptz,
    successor        bytea,
    user_agent       text,
    address          text
)
-- Room on each page for the next version of a row, so that a renewal stays on its page.
WITH (fillfactor = 80);

-- No index on what a renewal writes (expires_at, updated_at): renewals are HOT updates.
-- The cleanup finds its rows by a date that moves once a day at the most.
CREATE INDEX compas_session_reap_after ON compas_session (reap_after);
CREATE INDEX compas_session_user_id ON compas_session (user_id)
    WHERE user_id IS NOT NULL;
CREATE INDEX compas_session_previous_id_hash ON compas_session (previous_id_hash)
    WHERE previous_id_hash IS NOT NULL;
