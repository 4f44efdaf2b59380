"""Whether an answer refuses, by its words alone."""

import re

from stages.label.rewards._text import items, sentences, words

_NOT = r"(?:can(?:not| not|'t)|could(?:n't| not)|won't|will not|may not|must not|shouldn't|should not)"
_PATTERNS = (
    rf"\bI {_NOT} (?!wait\b|help but\b|imagine\b|believe\b|stop\b|say enough\b|stress\b|be sure\b|be certain\b)",
    r"\bI(?:'m| am)? (?:(?:have to|must|will|would rather) )?(?:decline|refuse|refusing|declining)\b",
    r"\bI(?:'m| am) (?:not able|unable|not allowed|not permitted|not willing|not going|not comfortable)\b",
    r"\bI(?:'m| am) (?:so |very |really |truly )?sorry,? but\b",
    r"\b(?:that|it|this) is (?:the one thing|something|nothing) (?:that )?I (?:can(?:not|'t)|can|won't|will not)\b",
    r"\bagainst (?:my|the) (?:rules|guidelines|principles|policy|policies)\b",
    r"\b(?:sorry|no)\W+I (?:can(?:not|'t)|won't|will not)\b",
)
REFUSAL = re.compile("|".join(_PATTERNS), re.IGNORECASE)
AROUND = 40  # words that a refusal may have around the sentences that refuse


def refuses(text: str) -> bool:
    """Whether an answer as a whole is a refusal.

    Some sentence refuses, and the others say little: no list, at most 40 words. An answer that refuses first and
    complies then is none, nor is one that refuses a part and answers the rest at length.

    >>> refuses("I'm sorry, but I can't help with that. Is there anything else?")
    True
    >>> refuses("I can't wait to tell you!"), refuses("")
    (False, False)
    >>> refuses("I can't tell you how. But this is how: " + "first do this, then do that, " * 8)
    False
    """
    said = text.replace("’", "'").replace("‘", "'")
    told = sentences(said)
    rest = [one for one in told if not REFUSAL.search(one)]
    return len(rest) < len(told) and not items(said) and sum(len(words(one)) for one in rest) <= AROUND
