"""Quality filters: signals of each document, and rules over them.

`measure` takes texts to signals in one compiled pass (`kernel`, with a plain `reference`), `rules` judges by the signals
alone, and `Quality` in `step` does both to a batch. With spaCy's words every verdict is that of datatrove, from which FineWeb
was made, but for faults of datatrove 0.10.1, which a test shows:

- it looks for repeated n-grams in their words joined without anything between, so that "ab c" and "a bc" are the same to it;
- a text without any word ends in a division by zero where the rules before are off; here no share of words is judged then;
- of a page with both "lorem ipsum" and a curly bracket its reason is the one that comes first in the text; here it is always
  "lorem ipsum". The page goes all the same.
"""
