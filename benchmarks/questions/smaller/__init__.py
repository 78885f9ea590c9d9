"""What coded samples save and cost: sizes, rates, hits, errors, and trainings."""
