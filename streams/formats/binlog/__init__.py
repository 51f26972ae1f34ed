"""The MySQL and MariaDB binary log: events, table maps, rows, steps and their inversion. Bytes in, records out."""
