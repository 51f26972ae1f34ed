"""What servers that speak MySQL's protocol have in common, each module one part of it: connections, the binlog dump and its
cutting into steps, definitions, the guard and native apply of rollbacks. Platforms (`agents.platforms`) register it."""
