"""Who may call what: tokens, roles, the first administrator, and the record of calls."""
