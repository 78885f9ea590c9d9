"""Hyper-parameter search: many runs of one recipe, shared among workers through a journal file."""
