"""Numbers that belong to a person: of phones, payment cards, bank accounts and Chinese resident identity cards.

Each kind is looked for within a passage of a text, from its first character to before its last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

_LONG_NUMBER = re.compile(r"[0-9](?:[ .\-()/]{0,3}[0-9]){6,}")
_ROOM = 64  # the longest, a bank account in groups of four, has 41 characters, and 20 may say that a number is a phone's

# Neither in the middle of a longer number nor of a name, an amount or a decimal.
_START = r"(?<![A-Za-z0-9_])(?<![0-9][.,\-/:])(?<![$€£¥#=])"
_END = r"(?![A-Za-z0-9_])(?![.,\-/:][0-9])"

_CARD = re.compile(
    _START + r"(?:[3-6][0-9]{12,18}|2[0-9]{15}|[2-6][0-9]{3}([ \-])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?"
    r"|3[0-9]{3}([ \-])[0-9]{6}\2[0-9]{4,5})" + _END
)
# Prefix, and the lengths of the numbers that have it: ISO/IEC 7812 as the issuers publish their ranges.
_CARD_RANGES = [
    (4, 4, (13, 16, 19)),  # Visa
    (51, 55, (16,)),  # Mastercard
    (2221, 2720, (16,)),
    (34, 34, (15,)),  # American Express
    (37, 37, (15,)),
    (300, 305, (14,)),  # Diners Club
    (36, 36, (14,)),
    (38, 39, (14,)),
    (6011, 6011, (16, 19)),  # Discover
    (644, 659, (16, 19)),
    (3528, 3589, (16, 19)),  # JCB
    (62, 62, (16, 17, 18, 19)),  # UnionPay
]

_CHINESE_ID = re.compile(r"(?<![A-Za-z0-9_])[1-9][0-9]{5}(?:18|19|20)[0-9]{2}[01][0-9][0-3][0-9]{4}[0-9Xx](?![A-Za-z0-9_])")
_PROVINCES = {11, 12, 13, 14, 15, 21, 22, 23, 31, 32, 33, 34, 35, 36, 37, 41, 42, 43, 44, 45, 46} | {
    *(50, 51, 52, 53, 54, 61, 62, 63, 64, 65, 71, 81, 82, 83, 91)
}
_ID_WEIGHTS = [pow(2, 17 - place, 11) for place in range(17)]  # GB 11643-1999, after ISO 7064 MOD 11-2
_ID_CHECKS = "10X98765432"

_CHINESE_MOBILE = re.compile(
    r"(?<![A-Za-z0-9_+\-])(?<![0-9][.,/:])(?<![$€£¥#=])(?:\(?\+?86\)?[ \-]?|0086[ \-]?)?1[3-9][0-9]([ \-]?)[0-9]{4}\1[0-9]{4}"
    r"|(?<![A-Za-z0-9_])\+86[ \-]?1[3-9][0-9]([ \-]?)[0-9]{4}\2[0-9]{4}"
)

_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2} ?[A-Z0-9]{4}")
# Country and length: the IBAN registry of SWIFT (ISO 13616).
_IBAN_REGISTRY = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18
FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21
MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25
SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20
"""
_IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _IBAN_REGISTRY.split()}

_SPACED = r"[ .\-]"
_PHONE = re.compile(
    r"(?<![A-Za-z0-9_+])(?<![0-9][.,\-/:])(?:"
    # International, of at most 15 digits: ITU-T E.164.
    r"\+[1-9][0-9]{0,2}(?:[ .\-/]?\(?[0-9]{1,5}\)?){2,6}"
    # North American, whose parts may not start with 0 or 1.
    rf"|(?:1[ .\-])?\([2-9][0-9]{{2}}\) ?[2-9][0-9]{{2}}{_SPACED}[0-9]{{4}}"
    r"|(?:1-)?[2-9][0-9]{2}-[2-9][0-9]{2}-[0-9]{4}|(?:1\.)?[2-9][0-9]{2}\.[2-9][0-9]{2}\.[0-9]{4}"
    # With the 0 that dials out of town: European ones in groups, and Chinese ones with area code.
    r"|\(0[1-9][0-9]{1,4}\) ?[0-9]{3,4}[ \-]?[0-9]{3,5}|0[1-9][0-9]{1,3}[ /][0-9]{3,4}[ \-][0-9]{3,5}"
    r"|0[1-9](?: [0-9]{2}){4}|(?:010|02[0-9]|0[3-9][0-9]{2})[\-－ ][1-9][0-9]{6,7}|[48]00-[0-9]{3}-[0-9]{4}"
    r")(?![A-Za-z0-9_])(?![.,\-/:][0-9])"
)
_SAID_TO_BE_A_PHONE = re.compile(
    r"(?:(?<![A-Za-z])(?:tele)?phone|(?<![A-Za-z])(?:tel|call|fax|mobile|mob|cell|whatsapp)|电话|電話|手机|手機|传真|傳真|热线|熱線|致电|致電)"
    r"(?: ?(?:numbers?|no\.?|me|us|him|her|at|on|is)| ?号码?| ?號碼?|[是为:：. （]){0,4}[:：. （]*"
    r"(?P<number>\(?[0-9][0-9 .\-/()]{5,18}[0-9])(?![A-Za-z0-9_])(?![.,\-/:][0-9])",
    re.I,
)
_FEWEST_DIGITS, _MOST_DIGITS = 7, 15
_DATE = re.compile(
    r"(?:1[89]|20)[0-9]{2}[.\-/ ](?:0?[1-9]|1[0-2])[.\-/ ][0-3]?[0-9]\b|[0-3]?[0-9][.\-/][0-3]?[0-9][.\-/](?:1[89]|20)[0-9]{2}"
)
_IN_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.\-]*://|www\.)[!-~]*\Z")
_LONGEST_URL = 300


def passages(text: str) -> list[tuple[int, int]]:
    """Where numbers of at least seven digits stand, with room around them for whatever kind they might be; none overlap."""
    found: list[tuple[int, int]] = []
    for match in _LONG_NUMBER.finditer(text):
        start, end = max(0, match.start() - _ROOM), match.end() + _ROOM
        if found and start <= found[-1][1]:
            start = found.pop()[0]
        found.append((start, end))
    return found


def credit_cards(text: str, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Where numbers of payment cards stand: known prefix, the length that goes with it, and Luhn's check digit."""
    for match in _CARD.finditer(text, first, last):
        digits = re.sub("[ -]", "", match[0])
        known = any(
            low <= int(digits[: len(str(low))]) <= high and len(digits) in lengths for low, high, lengths in _CARD_RANGES
        )
        if known and luhn(digits) and len(set(digits)) > 1 and not in_url(text, match.start()):
            yield match.span()


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others (ISO/IEC 7812-1, annex B)."""
    doubled = [int(digit) if place % 2 == 0 else sum(divmod(2 * int(digit), 10)) for place, digit in enumerate(digits[::-1])]
    return sum(doubled) % 10 == 0


def chinese_ids(text: str, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Where numbers of Chinese resident identity cards stand: province, date of birth and check character are right."""
    for match in _CHINESE_ID.finditer(text, first, last):
        digits = match[0]
        try:
            date(int(digits[6:10]), int(digits[10:12]), int(digits[12:14]))
        except ValueError:
            continue
        check = _ID_CHECKS[sum(weight * int(digit) for weight, digit in zip(_ID_WEIGHTS, digits, strict=False)) % 11]
        if int(digits[:2]) in _PROVINCES and digits[17].upper() == check:
            yield match.span()


def chinese_mobiles(text: str, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Where Chinese mobile numbers stand, with or without the country's code."""
    for match in _CHINESE_MOBILE.finditer(text, first, last):
        after = text[match.end() : match.end() + 2]
        goes_on = re.match(r"[A-Za-z0-9_]|[.,\-/:][0-9]", after)
        if not goes_on and not in_url(text, match.start()):
            yield match.span()


def ibans(text: str, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Where international bank account numbers stand: the length of the country, and the remainder 1 modulo 97."""
    for match in _IBAN_START.finditer(text, first, last):
        length = _IBAN_LENGTHS.get(match[0][:2], 0)
        end, characters = match.start(), ""
        while len(characters) < length and end < len(text):
            if text[end] == " " and len(characters) % 4 == 0 and text[end - 1] != " ":
                end += 1
                continue
            if not (text[end].isascii() and (text[end].isdigit() or text[end].isupper())):
                break
            characters += text[end]
            end += 1
        ends_here = not (text[end : end + 1].isascii() and text[end : end + 1].isalnum())
        if length and len(characters) == length and ends_here and _remainder(characters) == 1:
            yield match.start(), end


def _remainder(iban: str) -> int:
    """Modulo 97 (ISO 7064), with letters as the numbers from 10 to 35 and the first four characters last."""
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97


def phones(text: str, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Where phone numbers stand: written as only they are, or said to be one."""
    for pattern, group in ((_PHONE, 0), (_SAID_TO_BE_A_PHONE, "number")):
        for match in pattern.finditer(text, first, last):
            number = match[group]
            count = sum(char.isdigit() for char in number)
            is_date = _DATE.search(number) is not None
            if _FEWEST_DIGITS <= count <= _MOST_DIGITS and not is_date and not in_url(text, match.start(group)):
                yield match.span(group)


def in_url(text: str, start: int) -> bool:
    """Whether a place is within a URL, whose numbers are those of pages and not of persons."""
    return _IN_URL.search(text[max(0, start - _LONGEST_URL) : start]) is not None
