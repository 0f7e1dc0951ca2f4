"""The report: one HTML file of a study's results, to be opened from a mail, that needs nothing else."""
