"""Catalogs: reading tables, finding columns, joining rows to objects."""
