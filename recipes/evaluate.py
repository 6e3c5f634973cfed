"""Measure a classifier on a test set.

    python recipes/evaluate.py --model_name_or_path MODEL --test_file test.csv

Every setting: --help. The stage itself is a function of its settings and a directory: see `llmkit/stages.py`.
"""

import sys

from llmkit.stages import main

if __name__ == "__main__":
    sys.exit(main("evaluate"))
