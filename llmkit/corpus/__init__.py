"""Raw text to clean documents: the stage `preprocess`."""
