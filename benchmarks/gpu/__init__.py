"""What is to be run on a GPU, and the judge of its figures."""
