"""HTTP routes, authentication, the command line as their client. Knows schemas, streams, projections; never agents."""
