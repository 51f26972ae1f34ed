"""All that touches a protected system or stored bytes. Knows schemas and streams; never projections or the API."""
