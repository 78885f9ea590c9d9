"""Measures nodes and finds their faults before a job starts."""
