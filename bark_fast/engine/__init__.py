"""The engine: takes requests through the stages and owns what they share."""
