"""API keys, access tokens and private keys, by the prefixes that their issuers give them so that they can be found."""

from __future__ import annotations

import re
from collections.abc import Iterator

SHORTEST = 20
"""Characters in a row (letters, digits, underscores, hyphens) that every secret has."""

_BEFORE = r"(?<![A-Za-z0-9_\-])"
# By what must be in the text for the pattern to be tried at all.
_PATTERNS = [
    (needles, re.compile(pattern, flags))
    for needles, pattern, flags in [
        (["PRIVATE KEY"], r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----.*?-----END (?:[A-Z0-9]+ )*PRIVATE KEY-----", re.S),
        (["AKIA", "ASIA"], _BEFORE + r"(?:AKIA|ASIA)[0-9A-Z]{16}(?![A-Za-z0-9])", 0),
        (
            ["aws", "AWS", "Secret", "secret"],
            r"(?i:aws_?secret_?(?:access_?)?key|secretaccesskey)[\"']?\s*[=:]\s*[\"']?(?P<secret>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+])",
            0,
        ),
        (["ghp_", "gho_", "ghu_", "ghs_", "ghr_"], _BEFORE + r"gh[pousr]_[A-Za-z0-9]{36,}", 0),
        (["github_pat_"], _BEFORE + r"github_pat_[A-Za-z0-9_]{22,}", 0),
        (["glpat-"], _BEFORE + r"glpat-[A-Za-z0-9_\-]{20,}", 0),
        (["hf_"], _BEFORE + r"hf_[A-Za-z0-9]{30,}(?![A-Za-z0-9_])", 0),
        (["sk-"], _BEFORE + r"sk-(?=[A-Za-z_\-]*[0-9])(?=[a-z0-9_\-]*[A-Z]|[A-Za-z0-9]{32})[A-Za-z0-9_\-]{20,}", 0),
        (["sk_live_", "rk_live_"], _BEFORE + r"[sr]k_live_[A-Za-z0-9]{20,}", 0),
        (["xox"], _BEFORE + r"xox[abeoprs]-(?=[A-Za-z\-]*[0-9])[A-Za-z0-9\-]{16,}", 0),
        (["AIza"], _BEFORE + r"AIza[0-9A-Za-z_\-]{35}(?![0-9A-Za-z_\-])", 0),
        (["eyJ"], _BEFORE + r"eyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}", 0),
    ]
]


def secrets(text: str) -> Iterator[tuple[int, int]]:
    """Where keys and tokens of AWS, GitHub, GitLab, Hugging Face, OpenAI, Anthropic, Stripe, Slack and Google stand.

    JSON web tokens and PEM blocks of private keys are found as well.
    """
    for needles, pattern in _PATTERNS:
        if any(needle in text for needle in needles):
            group = "secret" if "secret" in pattern.groupindex else 0
            for match in pattern.finditer(text):
                yield match.span(group)
