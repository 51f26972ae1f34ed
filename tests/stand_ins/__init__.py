"""Stand-ins for what cannot be had in a test, and writers of native formats. Each says what it stands in for."""
