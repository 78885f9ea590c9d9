"""Which training objects a density rests on, and which labels are suspect."""
