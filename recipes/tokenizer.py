"""Train a tokenizer on documents.

    python recipes/tokenizer.py --corpus runs/base-model/preprocess --vocab_size 16000

Every setting: --help. The stage itself is a function of its settings and a directory: see `llmkit/stages.py`.
"""

import sys

from llmkit.stages import main

if __name__ == "__main__":
    sys.exit(main("tokenizer"))
