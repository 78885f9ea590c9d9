"""Embeddings of a network's layers: tables of them, and what lies near each other there."""
