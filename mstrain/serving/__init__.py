"""What a trained network gives to others: one file of it, and redshifts for positions."""
