-- Every statement that the library sends while serving, by name. Each touches one row by
-- its key, or a batch of such; those for lists and upkeep are at the end.
--
-- All times are the database's. Values cross as text, bytea, numbers and arrays of them,
-- because drivers disagree about jsonb and timestamps. `id_hash` is the SHA-256 of the
-- session id; the id itself never gets here. `previous_id_hash` is that of the id before
-- it was regenerated, honoured until `previous_until`; `successor` is the new id, sealed
-- so that only the old id opens it.
--
-- A change is one JSON object: set (object), remove (array), replace (true), idle and
-- absolute (seconds), own (true) with own_idle and own_absolute, user_agent, address.
-- `@name@` stands for the definition of that name.
--
-- Batches are read through a subquery (`@these@`, `@given@`): PostgreSQL then cannot see
-- their length, takes a plan that serves any, and does not plan anew each time, which
-- costs several times what the statement itself does.

-- define times --
extract(epoch FROM s.created_at)::float8, extract(epoch FROM s.expires_at)::float8,
extract(epoch FROM now())::float8, extract(epoch FROM s.authenticated_at)::float8

-- define written --
s.id_hash, s.successor, @times@

-- define data --
CASE WHEN c.change ->> 'replace' IS NOT NULL THEN c.change -> 'set'
     WHEN c.change ->> 'remove' IS NOT NULL
     THEN (s.data - ARRAY(SELECT jsonb_array_elements_text(c.change -> 'remove')))
          || coalesce(c.change -> 'set', '{}')
     WHEN c.change ->> 'set' IS NOT NULL THEN s.data || (c.change -> 'set')
     ELSE s.data END

-- define own_idle --
CASE WHEN c.change ->> 'own' IS NULL THEN s.own_idle
     ELSE (c.change ->> 'own_idle')::integer END

-- define own_absolute --
CASE WHEN c.change ->> 'own' IS NULL THEN s.own_absolute
     ELSE (c.change ->> 'own_absolute')::integer END

-- define expires_at --
-- Without an idle time in the change the lifetime is fixed. The session's own lifetimes
-- are read here and not sent along, so that a late renewal cannot undo them.
CASE WHEN c.change ->> 'idle' IS NULL THEN s.expires_at
     ELSE now() + least(
          coalesce(abs(@own_idle@), (c.change ->> 'idle')::float8),
          coalesce(@own_absolute@, (c.change ->> 'absolute')::float8)
              - extract(epoch FROM now() - s.created_at)::float8
          ) * interval '1 second' END

-- define merge --
data = @data@, own_idle = @own_idle@, own_absolute = @own_absolute@,
expires_at = @expires_at@, reap_after = ((@expires_at@) AT TIME ZONE 'UTC')::date,
updated_at = now()

-- define authenticated --
-- Signing in is setting `user_id` to somebody else.
authenticated_at = CASE
    WHEN c.change #> '{set,user_id}' <> 'null'
     AND c.change #> '{set,user_id}' IS DISTINCT FROM s.data -> 'user_id' THEN now()
    ELSE s.authenticated_at END

-- define these --
ANY (ARRAY(SELECT unnest(:ids::bytea[])))

-- define given --
SELECT given.id_hash, given.change::jsonb AS change
  FROM unnest((SELECT :ids::bytea[]), (SELECT :changes::text[]))
    AS given(id_hash, change)

-- define found --
(s.id_hash = :id::bytea
 OR (s.previous_id_hash = :id::bytea AND s.previous_until > now()))
AND s.expires_at > now()

-- load_sessions --
-- The live sessions with these ids, and those that had one of them before.
SELECT s.id_hash, NULL::bytea, NULL::bytea, NULL::boolean, s.data::text,
       @times@, s.own_idle, s.own_absolute, NULL::text
  FROM compas_session s
 WHERE s.id_hash = @these@ AND s.expires_at > now()
UNION ALL
SELECT s.previous_id_hash, s.id_hash, s.successor, s.previous_until > now(),
       s.data::text, @times@, s.own_idle, s.own_absolute, s.user_id
  FROM compas_session s
 WHERE s.previous_id_hash = @these@ AND s.expires_at > now();

-- lock_session --
-- The same for one session, its row locked until the transaction ends.
SELECT s.id_hash, s.id_hash, s.successor, true, s.data::text,
       @times@, s.own_idle, s.own_absolute, NULL::text
  FROM compas_session s
 WHERE @found@
   FOR UPDATE;

-- create_sessions --
-- New sessions. One whose id is taken does not come back, and changes nothing.
INSERT INTO compas_session AS s
       (id_hash, data, expires_at, reap_after, authenticated_at,
        own_idle, own_absolute, user_agent, address)
SELECT id_hash, data, expires_at, (expires_at AT TIME ZONE 'UTC')::date,
       CASE WHEN data -> 'user_id' <> 'null' THEN now() END,
       own_idle, own_absolute, user_agent, address
  FROM (SELECT c.id_hash, c.change -> 'set' AS data,
               now() + least(
                   coalesce(abs((c.change ->> 'own_idle')::integer),
                            (c.change ->> 'idle')::float8),
                   coalesce((c.change ->> 'own_absolute')::integer,
                            (c.change ->> 'absolute')::float8)
                   ) * interval '1 second' AS expires_at,
               (c.change ->> 'own_idle')::integer AS own_idle,
               (c.change ->> 'own_absolute')::integer AS own_absolute,
               c.change ->> 'user_agent' AS user_agent,
               c.change ->> 'address' AS address
          FROM (@given@) AS c) AS made
    ON CONFLICT (id_hash) DO NOTHING
RETURNING @written@;

-- save_sessions --
-- Merges changes into live sessions. A row that somebody else has locked is left out,
-- and so is one that is gone: those are saved one by one, so that nobody waits for
-- somebody else's lock, and two batches can never wait for each other.
  WITH given AS MATERIALIZED (@given@),
       locked AS (
       SELECT s.id_hash FROM compas_session s
        WHERE s.id_hash = @these@ AND s.expires_at > now()
          FOR UPDATE SKIP LOCKED)
UPDATE compas_session s
   SET @merge@, @authenticated@
  FROM given c JOIN locked ON locked.id_hash = c.id_hash
 WHERE s.id_hash = c.id_hash AND s.expires_at > now()
RETURNING @written@;

-- save_session --
-- The same for one, which waits for the row, and is found by its previous id as well.
UPDATE compas_session s
   SET @merge@, @authenticated@
  FROM (SELECT :change::text::jsonb AS change) AS c
 WHERE @found@
RETURNING @written@;

-- regenerate_session --
-- Moves a live session to a new id; of two at once, only one finds it.
UPDATE compas_session s
   SET @merge@, id_hash = :new_id::bytea, previous_id_hash = s.id_hash,
       previous_until = now() + :grace::float8 * interval '1 second',
       successor = :successor::bytea, authenticated_at = now(),
       user_agent = coalesce(c.change ->> 'user_agent', s.user_agent),
       address = coalesce(c.change ->> 'address', s.address)
  FROM (SELECT :change::text::jsonb AS change) AS c
 WHERE s.id_hash = :id::bytea AND s.expires_at > now()
RETURNING @written@;

-- delete_session --
DELETE FROM compas_session s
 WHERE s.id_hash = :id::bytea
    OR (s.previous_id_hash = :id::bytea AND s.previous_until > now())
RETURNING s.id_hash;

-- sessions_of --
-- The live sessions of a user, last used first.
SELECT s.id_hash, s.user_id, @times@, extract(epoch FROM s.updated_at)::float8,
       s.user_agent, s.address
  FROM compas_session s
 WHERE s.user_id = :user_id::text AND s.expires_at > now()
 ORDER BY s.updated_at DESC
 LIMIT :limit::integer;

-- revoke --
-- By the first 16 bytes of the hash, or of that before the id was regenerated.
DELETE FROM compas_session s
 WHERE (s.id_hash >= :low::bytea AND s.id_hash <= :high::bytea)
    OR (s.previous_id_hash >= :low::bytea AND s.previous_id_hash <= :high::bytea)
RETURNING s.expires_at > now();

-- revoke_user --
WITH ended AS (
     DELETE FROM compas_session s
      WHERE s.user_id = :user_id::text
        AND NOT (s.id_hash >= :low::bytea AND s.id_hash <= :high::bytea)
     RETURNING s.expires_at > now() AS live)
SELECT count(*) FILTER (WHERE live) FROM ended;

-- revoke_oldest --
-- Ends the sessions of a user that are over the allowed number, the longest unused first.
-- One that is locked is in use, or being ended: no sign-in waits for it. The user is
-- named twice so that the index serves twice.
DELETE FROM compas_session s
 WHERE s.user_id = :user_id::text AND s.id_hash IN (
       SELECT o.id_hash FROM compas_session o
        WHERE o.user_id = :user_id::text AND o.expires_at > now()
        ORDER BY o.updated_at DESC, o.created_at DESC
       OFFSET :allowed::integer
          FOR UPDATE SKIP LOCKED)
RETURNING s.id_hash;

-- revoke_all --
WITH ended AS (DELETE FROM compas_session s RETURNING s.expires_at > now() AS live)
SELECT count(*) FILTER (WHERE live) FROM ended;

-- delete_expired --
-- Whether a row has expired is asked again when it is deleted: it may have been renewed.
-- Of several cleaners one works at a time; the others find nothing to do. The lock is
-- this statement's, so that it holds behind PgBouncer and never outlives a process.
WITH claim AS MATERIALIZED (
     SELECT pg_try_advisory_xact_lock(7290217303148222) AS granted),
     doomed AS (
     SELECT s.id_hash FROM compas_session s
      WHERE (SELECT granted FROM claim)
        AND s.reap_after <= (now() AT TIME ZONE 'UTC')::date AND s.expires_at <= now()
      ORDER BY s.reap_after
      LIMIT :limit::integer
        FOR UPDATE SKIP LOCKED),
     deleted AS (
     DELETE FROM compas_session s USING doomed
      WHERE s.id_hash = doomed.id_hash AND s.expires_at <= now()
     RETURNING 1)
SELECT count(*) FROM deleted;

-- stats --
SELECT count(*) FILTER (WHERE s.expires_at > now()),
       count(*) FILTER (WHERE s.expires_at <= now()),
       count(*) FILTER (WHERE s.expires_at > now() AND s.user_id IS NULL),
       count(DISTINCT s.user_id) FILTER (WHERE s.expires_at > now()),
       extract(epoch FROM min(s.created_at) FILTER (WHERE s.expires_at > now()))::float8,
       extract(epoch FROM now())::float8,
       coalesce((SELECT sum(pg_total_relation_size(relid))  -- if it is partitioned
                   FROM pg_partition_tree('compas_session'))::bigint,
                pg_total_relation_size('compas_session'))
  FROM compas_session s;

-- top_users --
SELECT s.user_id, count(*)
  FROM compas_session s
 WHERE s.user_id IS NOT NULL AND s.expires_at > now()
 GROUP BY s.user_id ORDER BY count(*) DESC, s.user_id LIMIT :limit::integer;

-- check_session_table --
SELECT s.id_hash FROM compas_session s WHERE s.successor IS NULL LIMIT 0;
