"""One module per question, with the parts that only it needs."""
