-- log: binlog_row_metadata=NO_LOG
CREATE TABLE t (id int unsigned primary key, v varchar(20) charset latin1, b varbinary(20), e enum('a','b'), s set('x','y'), d decimal(5,2), g tinyint unsigned);
INSERT INTO t VALUES (4294967295, 'ümlaut', x'00ff', 'b', 'x,y', -1.25, 200), (1, '', '', 'a', '', 0, 0);
UPDATE t SET v = 'x' WHERE id = 1;
