"""Personal data and secrets: what is found of a set written by hand, and what is left alone."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.corpus.batch import Batch
from llmkit.corpus.pii import TYPES, Pii, find, numbers, placeholder, replace
from llmkit.errors import ConfigError

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789"
# Put together here, so that no scanner takes this file for a leak.
GITHUB, OPENAI, GOOGLE = "ghp" + "_" + LETTERS[-36:], "s" + "k-proj-" + LETTERS[8:40] + "Z9", "AI" + "za" + LETTERS[-35:]
AWS, SLACK, STRIPE = "AK" + "IAIOSFODNN7EXAMPLE", "xo" + "xb-123456789012-abcDEFghi", "sk" + "_live_" + LETTERS[20:46]
JWT = "ey" + "JhbGciOiJIUzI1NiJ9.ey" + "JzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"
KEY = "-----BEGIN RSA PRIVATE" + " KEY-----\nMIIEpAIBAAKCAQEA75abcdefghijklmnop\nabcd\n-----END RSA PRIVATE" + " KEY-----"
HUGGING_FACE, FINE_GRAINED = "hf" + "_" + LETTERS[:34], "github" + "_pat_11ABCDEFG0123456789_abcdef"

# Each text with what is to be found in it; << and >> stand around a passage of the type.
WRITTEN: dict[str, list[str]] = {
    "email": [
        "Write to <<jane.doe@example.com>>.",
        "<<a@b.co>>",
        "Contact: <<first.last+tag@sub.domain.co.uk>>, or call.",
        "请发邮件至<<zhang_wei@163.com>>联系我们。",
        "邮箱：<<lisi88@qq.com>>；",
        "<<O-Brien%home@mail-server.example.org>>",
        "mailto:<<info@firma.de>>",
        "<a href='mailto:<<info@firma.de>>'>",
        "From: Bob (<<bob_99@yahoo.co.jp>>)",
        "<<x1@y2.io>>,<<x3@y4.io>>",
        "ask <<jo@host.net>>- or me",
        "https://example.com/unsubscribe?mail=<<jo@host.net>>&x=1",
        "E-mail \"<<marie.curie@univ-paris.fr>>\" for reprints",
        "聯絡信箱<<service@gov.tw>>。",
        "Sent by <<UPPER.CASE@EXAMPLE.COM>>",
        "user <<root@mail.example.museum>> logged in",
        "Website: https://example.org\n<<info@example.org>>",
        "官网：http://www.abc.com，邮箱：<<info@abc.com>>。",
        "官网http://www.abc.com邮箱<<info@abc.com>>",
        "Contact Bob\n@acme.com now",
    ],
    "ip": [
        "The request came from <<91.198.174.192>>.",
        "<<8.8.4.114>> - - [10/Oct/2000:13:55:36] GET /",
        "Server <<172.217.16.142>>:8080 is down",
        "登录IP：<<114.114.114.119>>，时间",
        "来自<<223.5.5.57>>的访问",
        "<<2001:4860:4860::8888>> answers",
        "address <<2a00:1450:4001:81b:0:0:0:200e>> is up",
        "http://<<93.184.216.34>>/index.html",
        "blocked (<<45.33.32.156>>)",
        "ping <<104.16.132.229>>",
        "[<<2606:4700::6810:84e5>>]:443",
        "From <<185.199.108.153>> to <<140.82.121.4>>",
    ],
    "phone": [
        "Call <<+1 415 555 2671>> now",
        "Visit www.acme.com\n<<(555) 234-5678>>",
        "网址：http://www.abc.com\n<<13812345678>>",
        "<<+44 20 7946 0958>>",
        "<<+49 (0)30 901820>>",
        "Tel. <<+33 1 42 68 53 00>>",
        "<<(415) 555-2671>> is the number",
        "ring <<415-555-2671>>.",
        "<<212.555.0187>>, weekdays",
        "fax: <<1-800-555-0199>>",
        "Phone: <<020 7946 0958>>",
        "Telephone number: <<555 0142>>",
        "Tel <<030/901820-11>>",
        "téléphone : <<01 42 68 53 00>>",
        "办公电话：<<010-62751234>>",
        "电话：<<０１０－６２７５１２３４>>",
        "联系电话<<0571-87654321>>。",
        "传真：<<021-54321098>>",
        "服务热线<<400-820-8820>>",
        "電話：<<(02) 2345-6789>>",
        "<<+886 2 2345 6789>>",
        "<<+852 2345 6789>>",
        "Call me at <<5550142123>>",
        "WhatsApp <<+5511987654321>>",
    ],
    "credit_card": [
        "Visa <<4111 1111 1111 1111>> declined",
        "<<4012888888881881>>",
        "MC <<5555-5555-5555-4444>>",
        "<<5105105105105100>>",
        "Amex <<3782 822463 10005>>",
        "<<371449635398431>>",
        "<<6011111111111117>>",
        "<<3530111333300000>>",
        "<<2223003122003222>>",
        "Diners <<30569309025904>>",
        "卡号：<<6222021234567890128>>",
        "信用卡<<4242 4242 4242 4242>>，有效期",
        "card=\"<<5425233430109903>>\"",
    ],
    "chinese_id": [
        "身份证号：<<11010519491231002X>>",
        "<<440524188001010014>>",
        "身份證<<11010519491231002x>>。",
        "她的身份证号码是<<{id1}>>，请核对",
        "ID <<{id2}>>",
        "证件号<<{id3}>>",
        "(<<{id4}>>)",
        "张三，男，<<{id5}>>，住北京",
    ],
    "chinese_mobile": [
        "手机：<<13800138000>>",
        "请拨打<<159 1234 5678>>联系",
        "电话<<186-1234-5678>>",
        "<<+86 13912345678>>",
        "微信同号<<17712345678>>，欢迎咨询",
        "Mobile <<+8618812345678>>.",
        "联系人：王先生<<19912345678>>",
        "致电<<13100001111>>或<<13200002222>>",
        "<<0086 13512345678>>",
        "张经理：<<15000001234>>（同微信）",
        "電話：<<(86)13612345678>>",
    ],
    "iban": [
        "IBAN <<DE89 3704 0044 0532 0130 00>>",
        "<<GB29NWBK60161331926819>>",
        "<<FR14 2004 1010 0505 0001 3M02 606>> please",
        "Konto: <<NL91ABNA0417164300>>.",
        "<<CH93 0076 2011 6238 5295 7>>",
        "<<ES9121000418450200051332>>",
        "账号<<IT60X0542811101000000123456>>。",
        "<<BE68 5390 0754 7034>>, BIC",
    ],
    "secret": [
        f"export TOKEN=<<{GITHUB}>>",
        f"key: <<{OPENAI}>>",
        f"api_key='<<{GOOGLE}>>'",
        f"aws_access_key_id = <<{AWS}>>",
        "aws_secret_access_key = <<wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY>>",
        f"slack <<{SLACK}>>",
        f"Authorization: Bearer <<{JWT}>>",
        f"密钥：<<{STRIPE}>>。",
        f"<<{KEY}>>",
        f"login(token=\"<<{HUGGING_FACE}>>\")",
        f"<<{FINE_GRAINED}>>",
        f"https://x.example/?key=<<{GOOGLE}>>",
    ],
}  # fmt: skip

INNOCENT = [
    # no addresses
    "@someone on Twitter",
    "user@localhost",
    "git@github.com:owner/name.git",
    "img/logo@2x.png",
    "a @ b",
    "@property",
    "x@y",
    "https://medium.com/@writer/title-123",
    "https://user:secret@host.example.com/path",
    "5 @ 3.99",
    "foo@.com",
    "decorator @app.route",
    # no IP addresses
    "Version 1.2.3.4 is out",
    "v10.15.7.2",
    "release 19.99.1.112",
    "127.0.0.1",
    "192.168.1.1",
    "10.0.0.254",
    "172.16.31.5",
    "999.1.1.1",
    "1.2.3.4.5",
    "300.300.300.300",
    "see section 12.10.11.12",
    "版本号：12.4.18.22",
    "::1",
    "fe80::1",
    "12:30:45",
    "std::vector",
    "a::b::c",
    "00:1A:2B:3C:4D:5E",
    "2001:db8::1",
    "203.0.113.9",
    "kernel 10.4.22.13",
    "DE:AD",
    "Matthew 5:3:7",
    # no phones
    "2020-01-15",
    "15/01/2020",
    "2020.01.15",
    "1914-1918",
    "1,234,567,890",
    "1234567",
    "ISBN 978-3-16-148410-0",
    "ISBN 0-306-40615-2",
    "ISSN 0317-8471",
    "order 100-2345678-9012345",
    "3.14159265358979",
    "x = 123456789 + 987654321",
    "0.0012345678",
    "1990 1991 1992 1993",
    "10.1000/182",
    "doi:10.1038/s41586-020-2649-2",
    "arXiv:2005.14165",
    "1 2 3 4 5 6 7 8 9 10",
    "$415-555",
    "12:30-14:45 2021-05-06",
    "第2019号文件",
    "2021年10月1日",
    "订单号20210101123456789",
    "QQ群 123456789",
    "1234567890123",
    "page 415-420",
    "2,147,483,647",
    "https://example.com/a/415-555-2671",
    "timestamp 1609459200",
    "1609459200000",
    "05-06-2007",
    "call 911",
    "In 1984, 1,000 people",
    "ratio 16-9-4-2-1-0-0",
    "UTC+0800",
    "C++11 2011",
    "+1",
    "+100 200 points",
    "100 000 000",
    "37.7749, -122.4194",
    "(1997) 123-145",
    "http://www.site.cn/detail/13800138000.html",
    "https://item.example.com/p?id=15912345678",
    "单号113800138000123",
    "价格13800.138000元",
    "圆周率3.13800138000",
    "SN13800138000",
    "¥13800138000",
    "12800138000",
    "2021-13800138000-1",
    # no cards
    "4111 1111 1111 1112",
    "4111111111111",
    "1234567890123456",
    "9999 9999 9999 9999",
    "0000 0000 0000 0000",
    "978316148410",
    "5555555555554445",
    "40128888888818810000",
    "id=4012888888881882",
    "https://shop.example/o/4012888888881881",
    "4012888888881881.5",
    # no Chinese identity cards
    "110105194912310021",
    "11010519491331002X",
    "990105194912310020",
    "身份证号码为18位数字",
    "11010519490230002X",
    "440524188001010015",
    # no IBANs
    "DE89 3704 0044 0532 0130 01",
    "GB29NWBK60161331926818",
    "AB12 CDEF 3456 7890",
    "ISO 27001 2013 EN",
    "US64SVBKUS6S3300958879",
    "DE89370400440532013000A",
    "NL91ABNA04171643",
    # no secrets
    "sk-learn-is-a-very-long-name-indeed",
    "task-1234567890abcdefghij",
    "AKIA",
    "sk-fading-circle-1",
    "eyJust kidding",
    "AIzaShort",
    "ghp_short",
    "xoxo-love-and-kisses-forever-and-ever",
    "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
    "d41d8cd98f00b204e9800998ecf8427e",
    "550e8400-e29b-41d4-a716-446655440000",
    "hf_transfer",
    "the secret key of the city",
]


def resident(area: str, born: str, order: str) -> str:
    """A number with its check character, had from the definition: the weighted sum leaves 1 modulo 11."""
    weights = [pow(2, 17 - place, 11) for place in range(18)]
    digits = area + born + order
    total = sum(weight * int(digit) for weight, digit in zip(weights, digits, strict=False))
    (check,) = [value for value in range(11) if (total + value) % 11 == 1]
    return digits + ("X" if check == 10 else str(check))


IDS = {
    "id1": resident("310104", "19880808", "123"),
    "id2": resident("510107", "20000229", "004"),
    "id3": resident("440303", "19991231", "518"),
    "id4": resident("820000", "19750101", "777"),
    "id5": resident("110108", "19660606", "321"),
}


def cases() -> list[tuple[str, set[tuple[str, int, int]]]]:
    """The texts of the set and what is to be found in each, as type, start and end."""
    found = []
    for type_, texts in WRITTEN.items():
        for marked in texts:
            pieces = (marked.format(**IDS) if "{id" in marked else marked).split("<<")
            text, expected = pieces[0], set()
            for piece in pieces[1:]:
                inside, _, after = piece.partition(">>")
                expected.add((type_, len(text), len(text) + len(inside)))
                text += inside + after
            found.append((text, expected))
    return found + [(text, set()) for text in INNOCENT]


def score() -> dict[str, tuple[float, float, int]]:
    """Precision, recall and the number of passages to be found, of each type and of all together."""
    counts = {type_: [0, 0, 0] for type_ in (*TYPES, "all")}
    for text, expected in cases():
        actual = {(item.type, item.start, item.end) for item in find(text)}
        for column, items in enumerate((actual & expected, actual, expected)):
            for item in items:
                counts[item[0]][column] += 1
                counts["all"][column] += 1
        if actual != expected:
            print(f"{text!r}: found {sorted(actual - expected)}, missed {sorted(expected - actual)}")
    return {type_: (hits / max(1, found), hits / due, due) for type_, (hits, found, due) in counts.items()}


def test_precision_and_recall_on_the_set_written_by_hand() -> None:
    assert len(cases()) >= 200
    figures = score()
    print("\n".join(f"{name}: precision {p:.3f}, recall {r:.3f}, {n} passages" for name, (p, r, n) in figures.items()))
    precision, recall, _ = figures["all"]
    assert precision >= 0.98 and recall >= 0.98
    assert all(precision >= 0.9 and recall >= 0.9 for precision, recall, _ in figures.values())


def batch(*texts: str) -> Batch:
    return Batch(list(texts), [str(i) for i in range(len(texts))], ["here"] * len(texts), [{} for _ in texts])


def test_the_step_puts_placeholders_and_counts_by_type() -> None:
    documents = batch("Mail a@b.org or c@d.org, tel +1 415 555 2671.", "Nothing here.", "x@y.org")
    documents.reject(2, "too short")
    Pii()(documents)
    assert documents.texts == ["Mail [EMAIL] or [EMAIL], tel [PHONE].", "Nothing here.", "x@y.org"]
    assert documents.signals["pii_email"][:2].tolist() == [2, 0] and math.isnan(documents.signals["pii_email"][2])
    assert documents.signals["pii_phone"][:2].tolist() == [1, 0]
    assert set(documents.signals) == {f"pii_{type_}" for type_ in TYPES}


def test_the_step_can_drop_documents_and_says_why() -> None:
    documents = batch("Mail a@b.org, tel +1 415 555 2671.", "Nothing here.")
    Pii(action="drop")(documents)
    assert documents.rules == ["pii", ""] and documents.values == ["email, phone", None]
    assert documents.texts[0].startswith("Mail a@b.org")


def test_only_the_types_asked_for_are_replaced() -> None:
    assert replace("a@b.org, +1 415 555 2671", ["phone"])[0] == "a@b.org, [PHONE]"
    with pytest.raises(ConfigError, match="no type 'mail'"):
        find("a@b.org", ["mail"])
    with pytest.raises(ConfigError, match="replace or drop"):
        Pii(action="hide")


PIECES = [
    *("a@b.org", "13800138000", "4111 1111 1111 1111", "91.198.174.192", "+1 415 555 2671", IDS["id2"]),
    *("DE89 3704 0044 0532 0130 00", GITHUB, AWS, "x", "1", "-", " ", ".", "@", "/", ":", "，", "电话", "tel ", "[EMAIL]"),
    *("(", ")", "0", "86", "\ud800"),
]  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_replacing_twice_is_replacing_once(text: str) -> None:
    found = find(text)
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert all(0 <= item.start < item.end <= len(text) for item in found)
    replaced, counted = replace(text)
    assert replace(replaced) == (replaced, []) and len(counted) >= len(found)
    assert sum(replaced.count(placeholder(type_)) for type_ in TYPES) <= text.count("[EMAIL]") + len(counted)


@given(st.from_regex("[0-9]{11,18}", fullmatch=True))
def test_one_wrong_digit_never_passes_the_check_of_cards(digits: str) -> None:
    wrong = digits[:-1] + str((int(digits[-1]) + 1) % 10)
    assert not (numbers.luhn(digits) and numbers.luhn(wrong))


def test_long_lines_of_one_character_hold_nothing() -> None:
    for char in "1a.@:-+A0 ":
        assert find(char * 20_000) == []


def test_a_text_of_very_many_addresses() -> None:
    """Takes minutes where each is compared with all that were found before."""
    assert len(find("a@b.org " * 50_000)) == 50_000
