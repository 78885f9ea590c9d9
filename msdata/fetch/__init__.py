"""Fetches cutouts from public services: politely, resumably, each answer checked."""
