"""llmkit: raw text to a language model, the model to a task, the task to an evaluation report that can be trusted."""

__version__ = "0.1.0"
