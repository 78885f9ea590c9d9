"""Looks at the nodes of a job before it works: `facts` asks a node, `checks` judges, pure."""
