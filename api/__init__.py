"""HTTP routes, authentication, and the command line as their client. Knows schemas, streams, projections; never agents."""
