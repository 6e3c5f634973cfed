"""Pretrain a causal language model of a custom config.

    accelerate launch recipes/pretrain.py                              # the quick-start model on the embedded corpus
    accelerate launch recipes/pretrain.py --train_file my_corpus/       # the same on your own text
    accelerate launch --config_file accelerate_configs/ddp.yaml recipes/pretrain.py --config recipes/pretrain/quickstart.yaml

Every setting: --help. The stage itself is a function of its settings and a directory: see `llmkit/stages.py`.
"""

import sys

from llmkit.stages import main

if __name__ == "__main__":
    sys.exit(main("pretrain"))
