-- server: mysql-9
-- Transactions compressed as a whole (TRANSACTION_PAYLOAD_EVENT), tagged GTIDs, and both together.
CREATE TABLE t (id int primary key, v varchar(400), j json);
SET SESSION binlog_transaction_compression = ON;
INSERT INTO t VALUES (1,repeat('a',300),'{"a": 1}'),(2,'b',NULL),(3,'',NULL);
BEGIN;
INSERT INTO t VALUES (4,'four',NULL);
UPDATE t SET v = concat(v,'!');
DELETE FROM t WHERE id = 2;
COMMIT;
SET gtid_next = 'AUTOMATIC:nightly_job';
UPDATE t SET v = 'tagged' WHERE id = 3;
SET SESSION binlog_transaction_compression = OFF;
INSERT INTO t VALUES (5,'five',NULL);
SET gtid_next = 'AUTOMATIC';
INSERT INTO t VALUES (6,'six',NULL);
