"""A source's timeline as users see it: closed granules, the tail of the log, branches, targets, decoded steps."""
