"""How Holdfast is put on machines: the embedded stack, the `holdfast` entry point. Imported by no other room."""
