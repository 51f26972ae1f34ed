-- log: mysql56_temporal_format=OFF
-- Temporal columns as before MariaDB 10.1. The log cannot tell one with a fraction from one without.
SET time_zone = '+00:00';
CREATE TABLE whole (id int primary key, t time, d datetime, s timestamp null);
INSERT INTO whole VALUES (1, '-838:59:59', '9999-12-31 23:59:59', '2038-01-19 03:14:07'), (2, '12:34:56', '2023-06-15 10:20:30', '1970-01-01 00:00:01'), (3, '00:00:00', '0000-00-00', NULL), (4, NULL, NULL, '0000-00-00');
CREATE TABLE fractions (id int primary key, t time(3));
INSERT INTO fractions VALUES (1, '-12:34:56.789');
