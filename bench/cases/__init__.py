"""The cases that the commands measure, with their costs by formula."""
