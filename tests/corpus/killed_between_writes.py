"""A run of `preprocess` in this process that ends itself, as kill -9 would, before its n-th change to the disk.

    python killed_between_writes.py OUTPUT NUMBER FILE ...

NUMBER 0 lets it finish, and prints how many changes there were.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from llmkit.config import Source, resolve
from llmkit.corpus.settings import PreprocessConfig
from llmkit.pipeline.stage import run_stage
from llmkit.stages import STAGES

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
SETTINGS = {"task_bytes": 4096, "workers": 1, "validation_fraction": 1e-9, "deduplicate_paragraphs": True}


def main(output: Path, at: int, files: list[str]) -> None:
    count = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        is_write = event == "open" and bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if (event in CHANGES or is_write) and str(args[0]).startswith(str(output.parent)):
            count += 1
            if count == at:
                os._exit(9)

    sys.addaudithook(watch)
    run_stage(STAGES["preprocess"], resolve(PreprocessConfig, [Source({"train_file": files, **SETTINGS}, {})]), output)
    print(count)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
