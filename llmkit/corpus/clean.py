"""Texts made readable: mojibake repaired, one spelling, and the lines that are of the web page and not of its text removed."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import numpy as np

from llmkit.corpus.batch import Batch
from llmkit.corpus.normalise import normalise
from llmkit.errors import DataError

# UTF-8 read as Latin-1 or Windows-1252: the first byte of a character, and one that can follow, in their disguise. GBK and
# Cyrillic mojibake is not looked for: what it looks like is found in good Chinese and Russian as well.
_MAY_BE_MOJIBAKE = re.compile(
    "[\u00c2-\u00f4][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013\u2014\u2018-\u201a"
    "\u201c-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]"
)

_LONGEST = 80
_LONGEST_HAN = 40
_ORNAMENT = " \t\u3000|·•»«<>›‹→←↑↓▲▼×✕:：…-–—[]【】"


def _phrases(block: str) -> frozenset[str]:
    return frozenset(re.split(r",\s+", block.strip()))


# As a line of their own, these belong to a page. Words that are as well the heading of a section do not stand here.
_ALONE = _phrases(
    """
    skip to content, skip to main content, skip to navigation, back to top, return to top, top of page, read more,
    continue reading, learn more, show more, load more, see more, view more, click here, toggle navigation, main menu,
    site map, sitemap, privacy policy, cookie policy, terms of use, terms of service, contact us, terms and conditions,
    terms & conditions, log in, login, log out, logout, sign in, sign up, sign out, register now, create an account,
    create account, forgot password, forgot your password?, subscribe now, accept cookies, accept all cookies,
    accept all, reject all, cookie settings, manage cookies, share this, share on facebook, share on twitter,
    share on linkedin, share this post, share this article, share via email, tweet this, pin it, email this,
    print this page, printer-friendly version, follow us, leave a comment, post a comment, leave a reply, add to cart,
    add to wishlist, all rights reserved, advertisement, loading, previous post, next post, previous article,
    next article, related posts, powered by wordpress, edit this page, 上一篇, 下一篇, 上一页, 下一页, 返回首页,
    返回顶部, 回到顶部, 返回列表, 扫一扫, 分享到, 分享, 点击查看, 查看更多, 点击查看更多, 阅读全文, 阅读原文, 展开全文,
    加载更多, 更多精彩, 立即登录, 立即注册, 登录注册, 免费注册, 忘记密码, 设为首页, 加入收藏, 收藏本站, 联系我们,
    关于我们, 网站地图, 免责声明, 隐私政策, 打印本页, 关闭窗口, 友情链接, 发表评论, 我要评论, 相关推荐, 相关阅读,
    猜你喜欢, 热门推荐, 广告, 上一頁, 下一頁, 返回首頁, 回到首頁, 回頂端, 掃一掃, 點擊查看, 閱讀全文, 閱讀更多, 看更多,
    聯絡我們, 關於我們, 網站導覽, 隱私權政策, 會員登入, 加入會員, 相關文章
    """
)

# Parts of a menu: two or more of them in one line, with signs between them, and nothing else.
_MENU = _ALONE | _phrases(
    """
    home, about, about us, contact, contacts, search, help, faq, news, blog, menu, products, services, support, shop,
    store, careers, jobs, press, privacy, terms, legal, cookies, register, subscribe, rss, share, tweet, print, email,
    facebook, twitter, instagram, linkedin, youtube, pinterest, next, previous, 首页, 新闻, 产品, 服务, 登录, 注册, 帮助,
    搜索, 论坛, 博客, 下载, 客服, 微信, 微博, 收藏, 打印, 评论, 点赞, 首頁, 新聞, 產品, 服務, 登入, 註冊, 幫助, 搜尋,
    論壇, 部落格, 客服中心
    """
)
_FIRST_WORD = re.compile(r"[^\s|/>]+")
_BETWEEN = re.compile(r"\s*[|｜·•»›>/]+\s*|\s{2,}|\u3000+")

_PATTERN = re.compile(
    r"(?:copyright|\(c\)|©|&copy;)\s*(?:\(c\)|©|&copy;)?\s*(?:1[89]|20)\d\d\b.*"
    r"|.*\ball rights reserved\.?"
    r"|(?:we|this (?:web)?site|our (?:web)?site) uses? cookies\b.*"
    r"|by (?:continuing|using) (?:to (?:use|browse) )?(?:this|our) (?:web)?site,? you (?:agree|accept|consent)\b.*"
    r"|(?:click|tap) here to (?:read|view|see|subscribe|download|continue|log ?in|sign|share)\b.*"
    r"|share (?:this )?(?:on|to|via|with)(?: (?:facebook|twitter|x|linkedin|whatsapp|email|pinterest|reddit)[,/|]?)+"
    r"|(?:please )?(?:log ?in|sign in|sign up|register) (?:or (?:log ?in|sign up|register) )?to (?:comment|reply|view)\b.*"
    r"|(?:©|copyright)?.{0,20}(?:版权所有|版權所有)(?![者人权權的]).{0,30}"
    r"|分享(?:到|至)[:： ]?[^，。！？]{0,25}"
    r"|(?:上|下)一(?:篇|页|頁|章|条)[:：].{0,35}"
    r"|(?:请|請)?(?:点击|點擊|按此)(?:这里|這裡|此处|此處|查看|进入|進入|下载|下載|阅读|閱讀|关注).{0,15}"
    r"|(?:微信|打开微信)?(?:扫一扫|掃一掃|扫描二维码|扫描下方二维码|长按二维码|掃描 ?qr ?code).{0,20}"
    r"|(?:欢迎|请)?关注(?:我们|官方|本站|微信)?(?:的)?(?:微信)?公众号(?!的).{0,15}"
    r"|.{0,10}[icp]{3}(?:备|證|证)\d{6,10}号.{0,10}|.{0,6}公网安备 ?\d+号?"
    r"|(?:本文|文章)?未经.{0,10}(?:授权|许可|允许|同意).{0,8}转载.{0,8}|转载请注明(?:出处|来源).{0,15}"
    r"|责任编辑[:：].{1,10}|[(（]?责任编辑[:： ].{1,10}[)）]"
)
# How a line of the page in ASCII alone starts, which few other lines do.
_OPENERS = frozenset(phrase.split()[0] for phrase in _MENU) | _phrases(
    "copyright, (c), &copy;, we, this, our, by, tap, please"
)
_RIGHTS = ("all rights reserved", "all rights reserved.")
_HAN = re.compile("[\u3400-\u9fff]")
# Code, table rows, list items and quotations are never of the page, whatever they say.
_STRUCTURE = re.compile(r"\s{4}|\t|\s*(?:[-*+#>]\s|\d+[.)]\s|\|.*\|\s*$|```|~~~)")
_FENCE = re.compile(r"\s{0,3}(?:```|~~~)")


class Clean:
    """The step that makes texts readable.

    Args:
        repair: whether mojibake, UTF-8 that was read as Latin-1 or Windows-1252, is undone.
        boilerplate: whether navigation, cookie, share, copyright and login lines are removed.

    Signals:
        repaired: 1 where mojibake was undone, 0 elsewhere.
        boilerplate_lines: how many lines were removed.

    Raises:
        DataError: mojibake is to be repaired and ftfy is not installed.
    """

    def __init__(self, repair: bool = True, boilerplate: bool = False):
        self.repair = _fixer() if repair else None
        self.boilerplate = boilerplate

    def __call__(self, batch: Batch) -> None:
        repaired, removed = (np.full(len(batch), np.nan) for _ in range(2))
        for number in batch.kept():
            text = batch.texts[number]
            if self.repair is not None:
                fixed = repair(text, self.repair)
                repaired[number] = fixed != text
                text = fixed
            text = normalise(text)
            if self.boilerplate:
                text, removed[number] = without_boilerplate(text)
            batch.texts[number] = text
        if self.repair is not None:
            batch.signals["repaired"] = repaired
        if self.boilerplate:
            batch.signals["boilerplate_lines"] = removed


def repair(text: str, fix: Callable[[str], str] | None = None) -> str:
    """The text with mojibake undone; a text without any stays as it is, to the character.

    Raises:
        DataError: ftfy is not installed.
    """
    if text.isascii() or not _MAY_BE_MOJIBAKE.search(text):
        return text
    return (fix or _fixer())(text)


def without_boilerplate(text: str) -> tuple[str, int]:
    """The text without lines that are of the page around it, and how many they were; blank lines in their place go as well."""
    lines: list[str] = []
    removed, fenced = 0, False
    for line in text.split("\n"):
        if _FENCE.match(line):
            fenced = not fenced
        if line and len(line) <= _LONGEST and not fenced and _is_boilerplate(line):
            removed += 1
        else:
            lines.append(line)
    return (normalise("\n".join(lines)), removed) if removed else (text, 0)


def _is_boilerplate(line: str) -> bool:
    words = line.strip(_ORNAMENT).casefold()
    if words.isascii() and not words.endswith(_RIGHTS):
        first = _FIRST_WORD.match(words)
        if not first or first[0] not in _OPENERS:
            return False
    if _STRUCTURE.match(line) or (len(words) > _LONGEST_HAN and _HAN.search(words)):
        return False
    if words in _ALONE or _PATTERN.fullmatch(words):
        return True
    parts = _BETWEEN.split(words)
    return len(parts) > 1 and all(part in _MENU for part in parts)


@cache
def _fixer() -> Callable[[str], str]:
    """ftfy, told to undo wrong encodings and nothing else: quotes, widths, ligatures and HTML stay."""
    try:
        from ftfy import TextFixerConfig, fix_text
    except ImportError as error:
        raise DataError('repairing mojibake needs ftfy: pip install "llmkit[corpus]"') from error
    config = TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_encoding=True,
        restore_byte_a0=True,
        replace_lossy_sequences=True,
        decode_inconsistent_utf8=True,
        fix_c1_controls=True,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        fix_surrogates=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )
    return lambda text: fix_text(text, config)
