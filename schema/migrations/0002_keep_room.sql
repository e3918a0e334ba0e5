-- A megabyte that the table keeps, though it is empty. PostgreSQL plans by the pages that
-- a table has, and a prepared statement keeps its plan until the table is analysed: made
-- for a table of a few pages the plan is to read all of it, and so it goes on while that
-- grows to thousands. From 70 pages on every plan is one by the key; here are 134.
ALTER TABLE compas_session SET (vacuum_truncate = off);

INSERT INTO compas_session (handle, secret_hash, data, user_agent, expires_at)
SELECT lpad(n::text, 12, '~'), sha256(''), '{}', repeat('.', 1500), now()
  FROM generate_series(1, 400) AS n;
DELETE FROM compas_session WHERE handle LIKE '~%';
