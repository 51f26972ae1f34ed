-- server: mysql-9
-- What MySQL 9 logs in its own way: JSON in binary form, vectors, geometry with SRID, character sets by its own numbers,
-- members of ENUM and SET, functional and multi-valued keys, generated and invisible columns, keys it adds itself.
SET time_zone = '+00:00', sql_mode = 'ALLOW_INVALID_DATES,NO_AUTO_VALUE_ON_ZERO';
CREATE TABLE numbers (id int primary key, t tinyint, tu tinyint unsigned, bu bigint unsigned, d3 decimal(65,30), du decimal(9,4) unsigned, f float, r double, b1 bit(1), b64 bit(64), y year, z int(7) unsigned zerofill);
INSERT INTO numbers VALUES (1,-128,0,18446744073709551615,-99999999999999999999999999999999999.999999999999999999999999999999,0.0001,-3.40282e38,0.1,b'1',b'1000000000000000000000000000000000000000000000000000000000000001',0,42),
 (2,127,255,0,0.000000000000000000000000000001,99999.9999,0.1,5e-324,b'0',b'1111111111111111111111111111111111111111111111111111111111111111',2155,4294967295),
 (3,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE moments (id int primary key, d date, t0 time, t3 time(3), t6 time(6), dt0 datetime, dt6 datetime(6), ts0 timestamp null, ts6 timestamp(6) null);
INSERT INTO moments VALUES (1,'0000-00-00','-838:59:59','-838:59:58.999','-00:00:00.000001','0000-00-00','2023-00-00 01:02:03.000001','0000-00-00','1970-01-01 00:00:01.000001'),
 (2,'9999-12-31','838:59:59','838:59:58.001','12:34:56.000700','9999-12-31 23:59:59','9999-12-31 23:59:59.999999','2038-01-19 03:14:07','2024-10-27 00:30:00.123456'),
 (3,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE texts (id int primary key, c char(10) charset utf8mb4, v varchar(20) charset latin1, v9 varchar(20) collate utf8mb4_0900_as_cs, ja varchar(20) collate utf8mb4_ja_0900_as_cs, g8 varchar(20) charset gb18030, u16 varchar(20) charset utf16le, t3 text charset utf8mb3, bn varbinary(10), bi binary(4), e enum('é','x','') charset latin1, s set('a','b','ü') charset utf8mb4, eb enum('p','q') charset binary);
INSERT IGNORE INTO texts VALUES (1,'🦆 zehn','€ Œ ÿ','Straße','テスト','中🦆','🦆','日本',x'00ff','x','é','a,ü','q'),
 (2,'','','','','','','','','','bogus','','bogus'),(3,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE own (id int primary key, v vector(3), g geometry, p point srid 4326, gc geometrycollection, u varchar(36));
INSERT INTO own VALUES (1,STRING_TO_VECTOR('[1,2,-1.5]'),st_geomfromtext('POLYGON((0 0,1 0,1 1,0 0))',4326),st_geomfromtext('POINT(10 20)',4326),st_geomfromtext('GEOMETRYCOLLECTION(POINT(1 1))'),'x'),(2,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE json_ (id int primary key, j json, k json);
INSERT INTO json_ VALUES (1,'{}','[]'),(2,'null','true'),(3,'false','"text ü 🦆 \\"quoted\\" \\u0000 \\n \\\\ /"'),(4,'{"b": 1, "a": [1, -1, 1.5, 1e300, 18446744073709551615, -9223372036854775808], "ab": {"c": null}}','[65535, 65536, -32768, -32769, 2147483647, 2147483648, 4294967296, -2147483649, 0.1, 1.0, 1e-7, 123456789012345680, 1e22, -0.0]'),
 (5,json_object('d',cast('2023-06-15' as date),'t',cast('-38:59:58.000001' as time(6)),'dt',cast('2023-06-15 10:20:30.123456' as datetime(6)),'y',cast(2024 as year)),json_array(cast(-1234567890.12345 as decimal(20,5)),cast(99999999999999999999999999999999999 as decimal(65,0)),cast(0 as decimal(5,2)))),
 (6,json_object('blob',cast(x'00ff27' as binary),'empty',cast('' as binary),'bit',b'101'),cast(st_geomfromtext('POINT(1 2)') as json)),(7,concat('{"long": "',repeat('x',200),'", "longer": "',repeat('y',20000),'"}'),concat('[',repeat('{"k": [1, 2, {"deep": true}]}, ',3000),'false]')),(8,NULL,'"short"');
CREATE TABLE keys_ (n int, v varchar(20), j json, s int as (n * 2) stored, w int as (n + 1) virtual, h int default 4 invisible, key ((n + 1)), key ((cast(j as unsigned array))), unique key ((concat(v, n)))) ;
INSERT INTO keys_ (n, v, j) VALUES (1,'a','[1, 2]'),(2,'b',NULL);
SET SESSION sql_generate_invisible_primary_key = ON;
CREATE TABLE added (v int);
INSERT INTO added VALUES (1),(2);
SET SESSION sql_generate_invisible_primary_key = OFF;
CREATE TABLE parts (id int primary key, v varchar(5)) PARTITION BY HASH (id) PARTITIONS 4;
INSERT INTO parts VALUES (1,'a'),(2,'b'),(3,'c'),(7,NULL);
UPDATE parts SET v = 'z' WHERE id = 7;
UPDATE parts SET id = 6 WHERE id = 1;
DELETE FROM parts WHERE id = 2;
