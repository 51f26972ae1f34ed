"""One file for each kind of protected system: its registration and its data. A platform never sees another; what several
share is of a family beside them (`agents.mysql`)."""
