"""One package or file for each kind of protected system. A platform never sees another."""
