"""Says what a data set holds: counts, cards, contact sheets, statistics."""
