"""Fine-tune from the pretrained weights of a model and from random ones, and compare.

    accelerate launch recipes/ablate.py --config recipes/ablate/reviews.yaml --model_name_or_path MODEL
    accelerate launch recipes/ablate.py --model_name_or_path MODEL --train_file train.csv --test_file test.csv

Every setting: --help. The stage itself is a function of its settings and a directory: see `llmkit/stages.py`.
"""

import sys

from llmkit.stages import main

if __name__ == "__main__":
    sys.exit(main("ablate"))
