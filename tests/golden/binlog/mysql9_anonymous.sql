-- server: mysql-9
-- log: gtid_mode=ON_PERMISSIVE
-- log: gtid_mode=OFF_PERMISSIVE
-- log: binlog_row_metadata=MINIMAL
-- log: binlog_checksum=NONE
-- Without GTIDs, metadata and checksums.
CREATE TABLE t (id int unsigned primary key, v varchar(30) charset latin1, e enum('a','b'), j json);
INSERT INTO t VALUES (1,'one','a','{"a": [1, 2]}'),(4294967295,'zwei ü','b',NULL);
UPDATE t SET v = 'three' WHERE id = 1;
BEGIN;
DELETE FROM t WHERE id = 1;
INSERT INTO t VALUES (3,NULL,NULL,'[]');
COMMIT;
