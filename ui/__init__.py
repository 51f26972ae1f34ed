"""The web console. Speaks HTTP only and imports no other room."""
