"""Fine-tune a base model for a task.

    accelerate launch recipes/finetune.py --config recipes/finetune/reviews.yaml --model_name_or_path MODEL
    accelerate launch recipes/finetune.py --model_name_or_path MODEL --train_file train.csv

Every setting: --help. The stage itself is a function of its settings and a directory: see `llmkit/stages.py`.
"""

import sys

from llmkit.stages import main

if __name__ == "__main__":
    sys.exit(main("finetune"))
