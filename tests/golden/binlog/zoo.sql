-- Every column type, with the values at its ends, zero, and NULL.
SET time_zone = '+00:00', sql_mode = 'ALLOW_INVALID_DATES,NO_AUTO_VALUE_ON_ZERO';
CREATE TABLE numbers (
 id int primary key, t tinyint, tu tinyint unsigned, s smallint, su smallint unsigned, m mediumint, mu mediumint unsigned, i int, iu int unsigned, b bigint, bu bigint unsigned,
 d1 decimal(1,0), d2 decimal(10,2), d3 decimal(65,30), d4 decimal(65,0), d5 decimal(30,30), du decimal(9,4) unsigned, f float, fu float unsigned, f72 float(7,2), r double, ru double unsigned, bool_ boolean,
 b1 bit(1), b8 bit(8), b13 bit(13), b64 bit(64), y year
);
INSERT INTO numbers VALUES
 (1,-128,0,-32768,0,-8388608,0,-2147483648,0,-9223372036854775808,0, -9,-99999999.99,-99999999999999999999999999999999999.999999999999999999999999999999,-99999999999999999999999999999999999999999999999999999999999999999,-0.999999999999999999999999999999,0.0001,-3.40282e38,0,-12345.67,-1.7976931348623157e308,0,false,b'0',b'0',b'0',b'0',0),
 (2,127,255,32767,65535,8388607,16777215,2147483647,4294967295,9223372036854775807,18446744073709551615, 9,99999999.99,99999999999999999999999999999999999.999999999999999999999999999999,99999999999999999999999999999999999999999999999999999999999999999,0.999999999999999999999999999999,99999.9999,3.40282e38,1.17549e-38,12345.67,1.7976931348623157e308,2.2250738585072014e-308,true,b'1',b'11111111',b'1111111111111',b'1111111111111111111111111111111111111111111111111111111111111111',2155),
 (3,0,128,0,32768,0,8388608,0,2147483648,0,9223372036854775808, 0,0,0,0,0,0,0,0,0,0,0,1,b'1',b'10000000',b'1000000000001',b'1000000000000000000000000000000000000000000000000000000000000001',1901),
 (4,-1,1,-1,1,-1,1,-1,1,-1,1, 1,-0.01,-0.000000000000000000000000000001,123456789012345678,0.100000000000000000000000000001,1.5,0.1,0.3333333,-0.01,0.1,1e-300,0,b'0',b'101',b'101',b'101',1999),
 (5,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE moments (
 id int primary key, d date, t0 time, t1 time(1), t2 time(2), t3 time(3), t4 time(4), t5 time(5), t6 time(6), dt0 datetime, dt1 datetime(1), dt2 datetime(2), dt3 datetime(3), dt4 datetime(4), dt5 datetime(5), dt6 datetime(6),
 ts0 timestamp null, ts1 timestamp(1) null, ts2 timestamp(2) null, ts3 timestamp(3) null, ts4 timestamp(4) null, ts5 timestamp(5) null, ts6 timestamp(6) null
);
INSERT INTO moments VALUES
 (1,'0000-00-00','-838:59:59','-838:59:59.9','-838:59:59.99','-838:59:59.999','-838:59:59.9999','-838:59:59.99999','-838:59:59.999999','0000-00-00','0000-00-00','0000-00-00','0000-00-00','0000-00-00','0000-00-00','0000-00-00','0000-00-00','0000-00-00','0000-00-00','0000-00-00','0000-00-00','0000-00-00','0000-00-00'),
 (2,'9999-12-31','838:59:59','838:59:59.9','838:59:59.99','838:59:59.999','838:59:59.9999','838:59:59.99999','838:59:59.999999','9999-12-31 23:59:59','9999-12-31 23:59:59.9','9999-12-31 23:59:59.99','9999-12-31 23:59:59.999','9999-12-31 23:59:59.9999','9999-12-31 23:59:59.99999','9999-12-31 23:59:59.999999','2038-01-19 03:14:07','2038-01-19 03:14:07.9','2038-01-19 03:14:07.99','2038-01-19 03:14:07.999','2038-01-19 03:14:07.9999','2038-01-19 03:14:07.99999','2038-01-19 03:14:07.999999'),
 (3,'2023-02-30','-00:00:01','-00:00:00.1','-00:00:00.01','-00:00:00.001','-00:00:00.0001','-00:00:00.00001','-00:00:00.000001','2023-00-00 01:02:03','2023-02-30 01:02:03.4','1000-01-01','2024-02-29 12:34:56.789','1999-12-31 00:00:00.0001','0001-01-01 00:00:00.00001','2023-06-15 10:20:30.000001','1970-01-01 00:00:01','1970-01-01 00:00:01.1','2000-02-29 23:59:59.01','2023-06-15 10:20:30.001','2023-06-15 10:20:30.0001','2023-06-15 10:20:30.00001','2023-06-15 10:20:30.000001'),
 (4,'2023-06-15','00:00:00','-01:02:03.0','-01:02:03.50','12:34:56.700','-12:34:56.0700','12:34:56.00700','-12:34:56.000700','2023-06-15 10:20:30','2023-06-15 10:20:30.0','2023-06-15 10:20:30.10','2023-06-15 10:20:30.120','2023-06-15 10:20:30.1230','2023-06-15 10:20:30.12340','2023-06-15 10:20:30.123450','2023-06-15 10:20:30','2023-06-15 10:20:30.0','2023-06-15 10:20:30.10','2023-06-15 10:20:30.120','2023-06-15 10:20:30.1230','2023-06-15 10:20:30.12340','2023-06-15 10:20:30.123450'),
 (5,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE texts (
 id int primary key, c char(10), cl char(255), cb char(10) charset latin1, v varchar(20), vl varchar(4000), v1 varchar(20) charset latin1, v2 varchar(20) charset ucs2, v16 varchar(20) charset utf16, v32 varchar(20) charset utf32, vk varchar(20) charset koi8r, vg varchar(20) charset gbk, vs varchar(20) charset cp932, va varchar(20) charset ascii, v3 varchar(20) charset utf8mb3 collate utf8mb3_bin,
 tt tinytext, tx text, mt mediumtext, lt longtext, j json, vc varchar(300) compressed, tc text compressed, u14 varchar(10) collate utf8mb4_uca1400_ai_ci, np varchar(10) collate latin1_swedish_nopad_ci
);
INSERT INTO texts VALUES
 (1,'','','','','','','','','','','','','','','','','','','{}','','','',''),
 (2,'zehn Zeich',repeat('ü',255),'Straße','naïve 日本語 🦆',repeat('日本',200),'€ Œ ÿ','日本','🦆','🦆','привет','中文','テスト','ascii','日本','tiny',repeat('x',600),repeat('ä',400),repeat('z',700),'{"a": [1, null, "ü"]}',repeat('a',300),repeat('Lorem ipsum ',50),'ﬁ','x '),
 (3,'a','b','c','d','e','f','g','h','i','j','k','l','m','n','o','p','q','r','"s"','t','u','v','w'),
 (4,'quote''d','back\\slash','a\nb','tab\t','nul\0x','x','x','x','x','x','x','x','x','x',' lead','trail ','  ','','[]',' ','  ','ß','é '),
 (5,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE bytes_ (
 id int primary key, b binary(16), bl binary(255), v varbinary(20), vl varbinary(4000), tb tinyblob, bb blob, mb mediumblob, lb longblob, bc blob compressed, vbc varbinary(300) compressed, g geometry, p point, ls linestring, gc geometrycollection, e enum('small','medium','large','','ü'), e1 enum('é','x') charset latin1, s set('a','b','c','d e'), s64 set('m1','m2','m3','m4','m5','m6','m7','m8','m9','m10','m11','m12','m13','m14','m15','m16','m17','m18','m19','m20','m21','m22','m23','m24','m25','m26','m27','m28','m29','m30','m31','m32','m33','m34','m35','m36','m37','m38','m39','m40','m41','m42','m43','m44','m45','m46','m47','m48','m49','m50','m51','m52','m53','m54','m55','m56','m57','m58','m59','m60','m61','m62','m63','m64')
);
INSERT IGNORE INTO bytes_ VALUES
 (1,'','','','','','','','','','',NULL,NULL,NULL,NULL,'bogus','bogus','',''),
 (2,x'000102030405060708090a0b0c0d0e0f',repeat(x'ff',255),x'00ff00ff',repeat(x'80',400),x'deadbeef',repeat(x'00',600),repeat(x'01',700),repeat(x'02',660),repeat(x'03',1000),repeat(x'04',300),st_geomfromtext('POLYGON((0 0,1 0,1 1,0 0))',4326),point(1.5,-2.5),st_geomfromtext('LINESTRING(0 0,1 1)'),st_geomfromtext('GEOMETRYCOLLECTION(POINT(1 1))'),'large','é','a,c','m1,m64'),
 (3,x'00',x'2020',x'2020',x'20','a','b','c','d','e','f',point(0,0),point(0,0),NULL,NULL,'','x','a,b,c,d e','m33'),
 (4,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE others (id bigint unsigned auto_increment primary key, u uuid, i4 inet4, i6 inet6, inv int invisible default 7, st int as (inv + 1) stored, vi int as (inv + 2) virtual, `we``ird näme` int);
INSERT INTO others(u,i4,i6,`we``ird näme`) VALUES ('123e4567-e89b-12d3-a456-426655440000','1.2.3.4','2001:db8::ff00:42:8329',1),('00000000-0000-0000-0000-000000000000','0.0.0.0','::',NULL),(NULL,NULL,NULL,3);
-- More columns than one byte counts.
CREATE TABLE wide (c1 int primary key);
SET SESSION group_concat_max_len = 100000;
SET @s = (SELECT CONCAT('ALTER TABLE wide ', GROUP_CONCAT(CONCAT('ADD c', seq, ' ', ELT(1 + seq % 4, 'int', 'varchar(5)', 'tinyint not null default 3', 'text')) ORDER BY seq)) FROM seq_2_to_299);
PREPARE w FROM @s;
EXECUTE w;
INSERT INTO wide (c1, c5, c299) VALUES (2, 'abc', 'last'), (3, NULL, '');
