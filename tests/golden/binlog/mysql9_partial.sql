-- server: mysql-9
-- JSON documents of which only what changed is logged (PARTIAL_UPDATE_ROWS_EVENT).
SET SESSION binlog_row_value_options = 'PARTIAL_JSON';
CREATE TABLE docs (id int primary key, a json, n int, b json, c json);
INSERT INTO docs VALUES (1,'{"name": "first", "tags": ["x", "y", "z"], "deep": {"n": 1, "list": [1, 2, 3], "key \\"odd\\"": true}, "fill": "..............................................................................................................................."}',1,concat('["',repeat('b',300),'", 1]'),'{}'),(2,'{"a": 1}',2,'[1, 2, 3]',NULL),(3,'{"fill": "------------------------------------------------------------------------", "x": [1, {"y": [2]}]}',3,'null','[]');
UPDATE docs SET a = json_set(a, '$.name', 'short');
UPDATE docs SET a = json_replace(a, '$.deep.n', 2), n = n + 1 WHERE id = 1;
UPDATE docs SET a = json_remove(a, '$.tags[1]', '$.deep.list[0]') WHERE id = 1;
UPDATE docs SET a = json_set(a, '$.deep."key \\"odd\\""', json_object('t', cast('2023-06-15' as date))), b = json_replace(b, '$[1]', 'two') WHERE id = 1;
UPDATE docs SET a = json_set(a, '$.tags[1]', 1.5, '$.new', '[]'), c = json_set(c, '$.first', 1) WHERE id = 1;
UPDATE docs SET a = json_array_insert(a, '$.x[0]', 0), n = NULL WHERE id = 3;
UPDATE docs SET a = json_remove(a, '$.x[2].y'), b = NULL WHERE id = 3;
UPDATE docs SET b = '[9]', c = '{"whole": true}' WHERE id = 2;
DELETE FROM docs WHERE id = 2;
