"""Documents to a tokenizer, to token shards on disk, to training samples."""
