"""Real servers for tests, each started when first asked for and stopped at the end, by pid.

Fixtures are in tests/conftest.py, their classes in `tests.stack.servers`.
"""
