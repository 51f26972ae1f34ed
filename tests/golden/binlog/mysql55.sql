-- server: mysql-5.5
-- Version 1 rows events, no checksums, no GTIDs, no metadata, temporal types without fractions.
SET time_zone = '+00:00', sql_mode = 'ALLOW_INVALID_DATES,NO_AUTO_VALUE_ON_ZERO';
CREATE TABLE zoo (id int primary key, t tinyint, bu bigint unsigned, d decimal(30,10), f float, r double, b bit(33), y year, da date, ti time, dt datetime, ts timestamp null, c char(10) charset utf8mb4, v varchar(300) charset latin1, bi binary(4), tx text charset utf8, lb longblob, e enum('a','b','é') charset utf8, s set('x','y','z'), g geometry);
INSERT IGNORE INTO zoo VALUES (1,-128,18446744073709551615,-99999999999999999999.9999999999,-3.40282e38,0.1,b'100000000000000000000000000000001',0,'0000-00-00','-838:59:59','0000-00-00 00:00:00','0000-00-00 00:00:00','🦆','€','ab','日本',x'00ff','é','x,z',GeomFromText('POINT(1 2)',4326)),
 (2,127,0,0.0000000001,0.1,1e300,b'0',2155,'2023-02-30','838:59:59','9999-12-31 23:59:59','2038-01-19 03:14:07','','','','','','bogus','',NULL),
 (3,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
BEGIN;
UPDATE zoo SET t = 5, v = 'changed' WHERE id = 2;
INSERT INTO zoo (id) VALUES (4);
DELETE FROM zoo WHERE id = 3;
COMMIT;
CREATE TABLE flat (id int primary key, v int) ENGINE=MyISAM;
INSERT INTO flat VALUES (1, 1), (2, 2);
CREATE TABLE copied AS SELECT * FROM flat;
INSERT INTO zoo (id, v) VALUES (5, 'last');
