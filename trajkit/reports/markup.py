"""Text made safe for a page, and matplotlib's SVG made fit for one: themed by CSS, ids unique, small."""

import html
import re
from collections.abc import Mapping, Sequence

from trajkit.text import printable

_TIP = "tip-"


def tip_id(i: int) -> str:
    """The group id that marks where tooltip ``i`` goes."""
    return f"{_TIP}{i}"


def inline_svg(
    text: str,
    *,
    prefix: str,
    css_class: str,
    alt: str,
    colours: Mapping[str, str],
    tips: Sequence[str] = (),
) -> str:
    """An SVG file's text as an element of an HTML page.

    Args:
        text: what matplotlib wrote, with text as text (``svg.fonttype: none``).
        prefix: put before the ids that remain, so that figures do not mix them up.
        css_class: the element's class.
        alt: what the figure shows, for those who do not see it.
        colours: colour in the file -> CSS colour, such as ``var(--ink)``.
        tips: texts of the groups marked with :func:`tip_id`.

    """
    text = text[text.index("<svg") :]
    width, height = re.search(r'viewBox="0 0 (\S+) (\S+)"', text).groups()  # type: ignore[union-attr]
    body = text[text.index(">") + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"\s*\n\s*", " ", body).replace("> <", "><")
    body = re.sub(r'\b(d|x|y|transform)="([^"]*)"', _shorten, body)
    for colour, css in colours.items():
        body = body.replace(colour, css)
    body = re.sub(
        rf'<g id="{_TIP}(\d+)">',
        lambda m: f"<g><title>{html.escape(tips[int(m[1])], quote=False)}</title>",
        body,
    )
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(url\(|href=")#', rf"\g<1>#{prefix}", body)
    body = re.sub(r"<defs>\s*</defs>|<g>\s*</g>", "", body)
    return (
        f'<svg class="{css_class}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape(alt)}" style="max-width:{width}px">{body}</svg>'
    )


def _shorten(match: re.Match[str]) -> str:
    """Two decimals are a hundredth of a pixel."""
    value = re.sub(
        r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), match[2]
    )
    return f'{match[1]}="{value.strip()}"'


def escape(text: object) -> str:
    """Text that is safe in HTML, in attributes too; no line breaks before a per cent sign.

    >>> escape('<b> 5 %')
    '&lt;b&gt; 5\xa0%'
    """
    return tie(html.escape(printable(str(text))))


def tie(markup: str) -> str:
    """HTML in which no line breaks before a per cent sign."""
    return markup.replace(" %", "\u00a0%")
