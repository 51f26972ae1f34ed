-- log: log_bin_compress=ON
CREATE TABLE t (id int primary key, v text, w varchar(10)) COMMENT 'a comment long enough for the statement to be compressed, which is so from 256 bytes on, wherefore this goes on and on, without saying anything, to the end: abcdefghijklmnopqrstuvwxyz abcdefghijklmnopqrstuvwxyz abcdefghijklmnopqrstuvwxyz';
INSERT INTO t VALUES (1, REPEAT('abc', 1000), 'x'), (2, REPEAT('z', 5000), NULL), (3, 'short', '');
UPDATE t SET v = CONCAT(v, 'y', REPEAT('q', 500)) WHERE id > 1;
DELETE FROM t WHERE id = 1;
