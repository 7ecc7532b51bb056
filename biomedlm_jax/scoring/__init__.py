"""What is made of a model's answers: measures, contamination, the page beside published numbers."""
