"""Pure decoders of native payloads: bytes to frozen records, no I/O."""
