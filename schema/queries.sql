-- Every statement that the library sends while serving, by name. Each touches one row by
-- its key, or a batch of such; those for lists and upkeep are at the end.
--
-- All times are the database's. Values cross as text, bytea, numbers and arrays of them,
-- because drivers disagree about jsonb and timestamps. `secret_hash` is the SHA-256 of
-- the secret in the session id; the secret itself never gets here.
--
-- `@name@` stands for the definition of that name. In a definition `{name}` is a value of
-- the change: with `@one.name@` a parameter of the statement, with `@many.name@` a column
-- of the batch `c`. `@row@` makes two statements of one: `name` leaves out a row that
-- somebody else has locked, and `name_waiting` waits for it.
--
-- What touches one row is written so that a distributed planner (Citus) takes it as well:
-- it is found by the distribution column; there is no CASE with an operand, no now()
-- inside of CASE, COALESCE or RETURNING, and no `timestamptz + interval` or date_part()
-- of a column, which depend on the server they run on (tests/unit/test_distributed.py). So
-- `greatest(a with now(), CASE WHEN … THEN column END)` stands where a CASE would: of its
-- two one is NULL, which it ignores.
--
-- A statement for a batch has the parameters of the one for one row, each as an array.
-- Batches are read through a subquery (`(SELECT :handles::text[])`): PostgreSQL then
-- cannot see their length, takes a plan that serves any, and does not plan anew each
-- time, which costs several times what the statement itself does.

-- types --
set text, removed text[], replace boolean, idle float8, absolute float8, own boolean,
own_idle integer, own_absolute integer, shown bytea, key text, by text

-- define now --
date_part('epoch', now())

-- define own_idle --
CASE WHEN {own} THEN {own_idle} ELSE s.own_idle END

-- define own_absolute --
CASE WHEN {own} THEN {own_absolute} ELSE s.own_absolute END

-- define lifetime --
-- The session's own lifetimes are read here and not sent along, so that a late renewal
-- cannot undo them. Without `idle` the lifetime is fixed.
own_idle = @own_idle@, own_absolute = @own_absolute@,
expires_at = greatest(
    to_timestamp(@now@ + CASE WHEN {idle} IS NOT NULL THEN 1.0::float8 END * least(
        coalesce(abs(@own_idle@), {idle}),
        coalesce(@own_absolute@, {absolute})
            - date_part('epoch', now() - s.created_at))),
    CASE WHEN {idle} IS NULL THEN s.expires_at END),
updated_at = now()

-- define data --
data = CASE WHEN {set} IS NULL THEN s.data
            WHEN {replace} THEN {set}::jsonb
            ELSE (s.data - {removed}) || {set}::jsonb END

-- define shown --
-- The first time that somebody came with the current secret.
shown_at = greatest(s.shown_at, to_timestamp(@now@ *
    CASE WHEN s.shown_at IS NULL AND s.secret_hash = {shown} THEN 1.0::float8 END))

-- define sum --
-- Through text, because to_jsonb() is no function that may run anywhere. What holds no
-- number stays, and is told by its type.
data = CASE WHEN coalesce(jsonb_typeof(s.data -> {key}), 'number') = 'number'
    THEN jsonb_set(s.data, ARRAY[{key}],
        (coalesce(s.data ->> {key}, '0')::numeric + {by}::numeric)::text::jsonb)
    ELSE s.data END

-- define written --
-- As differences: the seconds of a timestamptz itself are for PostgreSQL a matter of the
-- time zone, which RETURNING may not depend on.
s.handle, date_part('epoch', s.expires_at - to_timestamp(0)),
date_part('epoch', s.updated_at - to_timestamp(0)),
date_part('epoch', s.authenticated_at - to_timestamp(0))

-- define record --
s.handle, s.data::text, s.secret_hash, s.former_hash, s.epoch,
date_part('epoch', s.created_at), date_part('epoch', s.updated_at),
date_part('epoch', s.expires_at), @now@, date_part('epoch', s.secret_at),
date_part('epoch', s.shown_at), date_part('epoch', s.authenticated_at),
s.own_idle, s.own_absolute

-- define batch --
-- The rows of a batch that are there and that nobody else has locked. Through an array
-- too, so that they are found by the key wherever PostgreSQL takes the table for empty.
locked AS (
    SELECT l.handle FROM compas_session l JOIN given g ON g.handle = l.handle
     WHERE l.handle = ANY (ARRAY(SELECT handle FROM given))
       FOR UPDATE OF l SKIP LOCKED)

-- define changes --
unnest((SELECT :handles::text[]), (SELECT :epoch::integer[]),
       (SELECT :set::text[]), (SELECT :removed::text[]),
       (SELECT :replace::boolean[]), (SELECT :idle::float8[]),
       (SELECT :absolute::float8[]), (SELECT :own::boolean[]),
       (SELECT :own_idle::integer[]), (SELECT :own_absolute::integer[]),
       (SELECT :shown::bytea[]))
    AS g(handle, epoch, set, removal, replace, idle, absolute,
         own, own_idle, own_absolute, shown)

-- load_session --
SELECT @record@
  FROM compas_session s
 WHERE s.handle = :handle::text AND s.expires_at > now();

-- load_sessions --
SELECT @record@
  FROM compas_session s
 WHERE s.handle = ANY (ARRAY(SELECT unnest(:handles::text[]))) AND s.expires_at > now();

-- lock_session --
-- The row is locked until the transaction ends.
SELECT @record@
  FROM compas_session s
 WHERE s.handle = :handle::text AND s.expires_at > now()
   FOR UPDATE;

-- create_session --
-- One whose handle is taken does not come back, and changes nothing. Whoever makes a
-- session shows its secret first.
INSERT INTO compas_session AS s
       (handle, secret_hash, shown_at, data, user_id, expires_at, authenticated_at,
        own_idle, own_absolute, user_agent, address)
VALUES (:handle::text, :secret_hash::bytea, now(), :set::text::jsonb, :user_id::text,
        to_timestamp(@now@ + least(
            coalesce(abs(:own_idle::integer), :idle::float8),
            coalesce(:own_absolute::integer, :absolute::float8))),
        to_timestamp(@now@ *
            CASE WHEN :user_id::text IS NOT NULL THEN 1.0::float8 END),
        :own_idle::integer, :own_absolute::integer, :user_agent::text, :address::text)
    ON CONFLICT DO NOTHING
RETURNING @written@;

-- create_sessions --
INSERT INTO compas_session AS s
       (handle, secret_hash, shown_at, data, user_id, expires_at, authenticated_at,
        own_idle, own_absolute, user_agent, address)
SELECT c.handle, c.secret_hash, now(), c.set::jsonb, c.user_id,
       to_timestamp(@now@ + least(coalesce(abs(c.own_idle), c.idle),
                                  coalesce(c.own_absolute, c.absolute))),
       to_timestamp(@now@ * CASE WHEN c.user_id IS NOT NULL THEN 1.0::float8 END),
       c.own_idle, c.own_absolute, c.user_agent, c.address
  FROM unnest((SELECT :handles::text[]), (SELECT :secret_hash::bytea[]),
              (SELECT :set::text[]), (SELECT :user_id::text[]),
              (SELECT :idle::float8[]), (SELECT :absolute::float8[]),
              (SELECT :own_idle::integer[]), (SELECT :own_absolute::integer[]),
              (SELECT :user_agent::text[]), (SELECT :address::text[]))
    AS c(handle, secret_hash, set, user_id, idle, absolute, own_idle, own_absolute,
         user_agent, address)
    ON CONFLICT DO NOTHING
RETURNING @written@;

-- save_session --
-- Merges a change into a live session.
UPDATE compas_session s
   SET @one.data@, @one.lifetime@, @one.shown@
 WHERE @row@
RETURNING @written@;

-- save_sessions --
-- The same for many. A row that somebody else has locked is left out, and so is one that
-- is gone: those are saved one by one, so that nobody waits for somebody else's lock, and
-- two batches can never wait for each other.
  WITH given AS MATERIALIZED (
       SELECT g.*, CASE WHEN g.removal IS NULL THEN '{}'::text[]
              ELSE ARRAY(SELECT jsonb_array_elements_text(g.removal::jsonb)) END
              AS removed
         FROM @changes@),
       @batch@
UPDATE compas_session s
   SET @many.data@, @many.lifetime@, @many.shown@
  FROM given c JOIN locked ON locked.handle = c.handle
 WHERE s.handle = c.handle AND s.epoch = c.epoch AND s.expires_at > now()
RETURNING @written@;

-- increment_session --
-- Adds to a number. Its first column but the key tells what the key holds now.
UPDATE compas_session s
   SET @one.sum@, @one.lifetime@, @one.shown@
 WHERE @row@
RETURNING @written@, (s.data -> :key::text)::text, jsonb_typeof(s.data -> :key::text);

-- increment_sessions --
  WITH given AS MATERIALIZED (
       SELECT g.*, k.key, k.by
         FROM @changes@
         JOIN unnest((SELECT :handles::text[]), (SELECT :key::text[]),
                     (SELECT :by::text[])) AS k(handle, key, by)
           ON k.handle = g.handle),
       @batch@
UPDATE compas_session s
   SET @many.sum@, @many.lifetime@, @many.shown@
  FROM given c JOIN locked ON locked.handle = c.handle
 WHERE s.handle = c.handle AND s.epoch = c.epoch AND s.expires_at > now()
RETURNING @written@, (s.data -> c.key)::text, jsonb_typeof(s.data -> c.key);

-- regenerate_session --
-- Gives a live session a new secret; of two at once, only one finds the former one. Where
-- who the visitor is changes (`identity`), the former one opens nothing any more, and the
-- epoch shuts out what began before. Where the answer with the current one was lost,
-- `former` is what the browser has; then only if nobody has shown the current one.
UPDATE compas_session s
   SET @one.data@, @one.lifetime@,
       former_hash = CASE WHEN :identity::boolean THEN NULL
                     ELSE coalesce(:former::bytea, s.secret_hash) END,
       secret_hash = :new::bytea, secret_at = now(), shown_at = NULL,
       epoch = s.epoch + (:identity::boolean)::integer,
       user_id = CASE WHEN :identity::boolean THEN :user_id::text ELSE s.user_id END,
       authenticated_at = greatest(
           CASE WHEN :signed_in::boolean IS NULL THEN s.authenticated_at END,
           to_timestamp(@now@ * CASE WHEN :signed_in::boolean THEN 1.0::float8 END)),
       user_agent = coalesce(:user_agent::text, s.user_agent),
       address = coalesce(:address::text, s.address)
 WHERE @row@ AND s.secret_hash = :mine::bytea
   AND (:former::bytea IS NULL OR s.shown_at IS NULL)
RETURNING @written@;

-- delete_session --
DELETE FROM compas_session s
 WHERE @row@
RETURNING s.handle;

-- define row --
s.handle = :handle::text AND s.epoch = :epoch::integer AND s.expires_at > now()

-- define row_unlocked --
s.handle = :handle::text AND s.handle = (
    SELECT l.handle FROM compas_session l
     WHERE l.handle = :handle::text AND l.epoch = :epoch::integer
       AND l.expires_at > now()
       FOR UPDATE SKIP LOCKED)

-- sessions_of --
-- The live sessions of a user, last used first.
SELECT s.handle, s.user_id, date_part('epoch', s.created_at),
       date_part('epoch', s.updated_at), date_part('epoch', s.expires_at),
       s.user_agent, s.address
  FROM compas_session s
 WHERE s.user_id = :user_id::text AND s.expires_at > now()
 ORDER BY s.updated_at DESC
 LIMIT :limit::integer;

-- revoke --
-- Whoever's session it is by now.
DELETE FROM compas_session s
 WHERE s.handle = :handle::text AND s.handle = (
       SELECT l.handle FROM compas_session l
        WHERE l.handle = :handle::text AND l.expires_at > now()
          FOR UPDATE SKIP LOCKED)
RETURNING s.handle;

-- revoke_waiting --
DELETE FROM compas_session s
 WHERE s.handle = :handle::text AND s.expires_at > now()
RETURNING s.handle;

-- revoke_user_unlocked --
-- All but one. Nobody waits for those that somebody else has locked; if there are any, `revoke_user`
-- follows, from one connection for each user.
DELETE FROM compas_session s
 WHERE s.handle = ANY (ARRAY(
       SELECT l.handle FROM compas_session l
        WHERE l.user_id = :user_id::text AND l.handle <> :handle::text
          AND l.expires_at > now()
          FOR UPDATE SKIP LOCKED))
RETURNING s.handle;

-- revoke_user --
DELETE FROM compas_session s
 WHERE s.user_id = :user_id::text AND s.handle <> :handle::text
   AND s.expires_at > now()
RETURNING s.handle;

-- queue_for_user --
-- Sign-ins of one user that are bounded in number go one after the other.
SELECT pg_advisory_xact_lock(hashtextextended(:user_id::text, 7290217303148223));

-- surplus_sessions --
-- Those of a user's other sessions that are over the number, the longest unused first.
SELECT s.handle
  FROM compas_session s
 WHERE s.user_id = :user_id::text AND s.handle <> :handle::text AND s.expires_at > now()
 ORDER BY s.updated_at DESC, s.created_at DESC
OFFSET :others::integer;

-- end_surplus --
-- One that is locked is being ended, or in use; no sign-in waits for it.
DELETE FROM compas_session s
 WHERE s.handle = ANY (ARRAY(
       SELECT l.handle FROM compas_session l
        WHERE l.handle = ANY (:handles::text[]) AND l.user_id = :user_id::text
          FOR UPDATE SKIP LOCKED))
RETURNING s.handle;

-- end_surplus_one --
DELETE FROM compas_session s
 WHERE s.handle = :handle::text AND s.handle = (
       SELECT l.handle FROM compas_session l
        WHERE l.handle = :handle::text AND l.user_id = :user_id::text
          FOR UPDATE SKIP LOCKED)
RETURNING s.handle;

-- revoke_all --
WITH ended AS (DELETE FROM compas_session s WHERE s.expires_at > now() RETURNING 1)
SELECT count(*) FROM ended;

-- delete_expired --
-- A row that was renewed meanwhile stays: what is locked is looked at as it is then.
-- Of several cleaners one works at a time; the others find nothing to do. The lock is
-- this statement's, so that it holds behind PgBouncer and never outlives a process.
WITH claim AS MATERIALIZED (
     SELECT pg_try_advisory_xact_lock(7290217303148222) AS granted),
     doomed AS (
     SELECT s.handle FROM compas_session s
      WHERE (SELECT granted FROM claim)
        AND s.reap_after <= (now() AT TIME ZONE 'UTC')::date AND s.expires_at <= now()
      ORDER BY s.reap_after
      LIMIT :limit::integer
        FOR UPDATE SKIP LOCKED),
     deleted AS (
     DELETE FROM compas_session s USING doomed WHERE s.handle = doomed.handle
     RETURNING 1)
SELECT count(*) FROM deleted;

-- stats --
SELECT c.*, coalesce(size.parts, pg_total_relation_size('compas_session'))
  FROM (SELECT count(*) FILTER (WHERE s.expires_at > now()),
               count(*) FILTER (WHERE s.expires_at <= now()),
               count(*) FILTER (WHERE s.expires_at > now() AND s.user_id IS NULL),
               count(DISTINCT s.user_id) FILTER (WHERE s.expires_at > now()),
               date_part('epoch', min(s.created_at)
                                  FILTER (WHERE s.expires_at > now())),
               @now@
          FROM compas_session s) AS c,
       (SELECT sum(pg_total_relation_size(relid))::bigint  -- if it is partitioned
          FROM pg_partition_tree('compas_session')) AS size(parts);

-- top_users --
SELECT s.user_id, count(*)
  FROM compas_session s
 WHERE s.user_id IS NOT NULL AND s.expires_at > now()
 GROUP BY s.user_id ORDER BY count(*) DESC, s.user_id LIMIT :limit::integer;

-- check_session_table --
-- For no row, but refused where the table or its newest column is missing.
SELECT s.secret_at FROM compas_session s LIMIT 0;

-- encoding --
SELECT current_setting('server_encoding');
