"""HTTP: OpenAI's speech API on the engine."""
