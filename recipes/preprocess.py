"""Turn raw text into clean documents.

    python recipes/preprocess.py --train_file corpus/

Every setting: --help. The stage itself is a function of its settings and a directory: see `llmkit/stages.py`.
"""

import sys

from llmkit.stages import main

if __name__ == "__main__":
    sys.exit(main("preprocess"))
