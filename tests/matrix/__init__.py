"""What every server of the matrix is put through, as data: see `types`."""
