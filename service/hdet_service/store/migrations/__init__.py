"""Alembic's folder: `env.py` is run by it, each file in ``versions`` is one step of the schema."""
